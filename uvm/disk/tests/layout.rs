//! Layouts: thousands of random ones keep what they promise, and the rules of reuse give their reasons.
#![allow(clippy::unwrap_used)]

use uuid::uuid;
use uvm_disk::ErrorKind;
use uvm_disk::gpt::{Guid, partition_type};
use uvm_disk::layout::{
    Action, Claim, Decided, Placement, Share, Space, Taken, Wanted, WantedFileSystem, decide, place, share,
};
use uvm_disk::probe::{FileSystem, PartitionKind, ProbedPartition};

const MIB: u64 = 1 << 20;

/// xorshift64*: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % limit.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            items.swap(last, other);
        }
    }
}

fn shares(random: &mut Random) -> (u64, Vec<Share>) {
    let huge = random.chance(10);
    let unit = if huge { 1 << 40 } else { 1 + random.below(300) };
    let count = 1 + random.below(9) as u32;
    let mut all: Vec<Share> = (0..count)
        .map(|rank| {
            let min = random.below(unit);
            let max = if random.chance(40) { min + random.below(unit) } else { u64::MAX };
            let weight = if random.chance(10) { 0 } else { 1 + random.below(1_000_000) as u32 };
            Share { min, max, weight, rank }
        })
        .collect();
    if random.chance(20) {
        all[0].max = all[0].min;
    }
    let least: u64 = all.iter().map(|share| share.min).sum();
    (least + random.below(unit * u64::from(count)), all)
}

#[test]
fn shares_are_exact_within_bounds_and_follow_one_level() {
    let mut random = Random(1);
    for _ in 0..20_000 {
        let (total, mut all) = shares(&mut random);
        let parts = share(total, &all).unwrap();
        let sum: u64 = parts.iter().sum();
        let full = all.iter().zip(&parts).all(|(share, part)| *part == share.max || share.weight == 0);
        assert!(sum == total || (sum < total && full), "{total} {all:?} {parts:?}");
        for (share, part) in all.iter().zip(&parts) {
            assert!((share.min..=share.max).contains(part), "{total} {all:?} {parts:?}");
        }
        // Between any two that are not at their bounds, parts are as weights, but for the rounding of one unit.
        let free: Vec<(u128, u128)> = all
            .iter()
            .zip(&parts)
            .filter(|(share, part)| **part > share.min && **part < share.max)
            .map(|(share, part)| (u128::from(share.weight), u128::from(*part)))
            .collect();
        for (weight_a, part_a) in &free {
            for (weight_b, part_b) in &free {
                assert!((part_a - 1) * weight_b <= (part_b + 1) * weight_a, "{total} {all:?} {parts:?}");
            }
        }
        // The order says nothing.
        let expected: std::collections::BTreeMap<u32, u64> =
            all.iter().map(|share| share.rank).zip(parts).collect();
        random.shuffle(&mut all);
        for (share, part) in all.iter().zip(share(total, &all).unwrap()) {
            assert_eq!(part, expected[&share.rank]);
        }
        let least: u64 = all.iter().map(|share| share.min).sum();
        if least > 0 {
            assert_eq!(share(least - 1, &all), None);
        }
    }
}

struct Case {
    space: Space,
    taken: Vec<Taken>,
    claims: Vec<Claim>,
}

fn case(random: &mut Random) -> Case {
    let block = if random.chance(50) { 512 } else { 4096 };
    let alignment = MIB << random.below(4);
    let end = (64 + random.below(4096)) * MIB - (1 + random.below(300)) * block;
    let space = Space { start: 34 * block, end, alignment };
    let mut taken = Vec::new();
    let mut at = space.start;
    for number in 1..=random.below(4) {
        // Other tools' partitions lie anywhere.
        let offset = at + random.below(400 * MIB / block) * block;
        let size = (1 + random.below(200 * MIB / block)) * block;
        if offset + size < space.end {
            taken.push(Taken { name: format!("partition {number}"), offset, size });
            at = offset + size;
        }
    }
    let mut claims = Vec::new();
    for name in 0..random.below(7) {
        let min = (1 + random.below(200)) * MIB;
        let max = match random.below(3) {
            0 => Some(min),
            1 => Some(min + random.below(500) * MIB),
            _ => None,
        };
        let weight = random.below(3000) as u32;
        claims.push(Claim { name: format!("p{name}"), start: None, min, max, weight });
    }
    if random.chance(30) && !claims.is_empty() {
        claims[0].start = Some((1 + random.below(2048)) * MIB);
    }
    Case { space, taken, claims }
}

fn check_placed(case: &Case, placed: &[Placement]) {
    let Case { space, taken, claims } = case;
    let mut extents: Vec<(u64, u64)> = taken.iter().map(|taken| (taken.offset, taken.size)).collect();
    for (claim, at) in claims.iter().zip(placed) {
        assert!(at.size >= claim.min && claim.max.is_none_or(|max| at.size <= max), "{claim:?} {at:?}");
        match claim.start {
            Some(start) => assert_eq!(at.offset, start),
            None => assert_eq!(at.offset % space.alignment, 0),
        }
        extents.push((at.offset, at.size));
    }
    extents.sort_unstable();
    for pair in extents.windows(2) {
        assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{extents:?}");
    }
    let inside = |(offset, size): &(u64, u64)| *offset >= space.start && offset + size <= space.end;
    assert!(extents.iter().all(inside), "{extents:?} {space:?}");
}

#[test]
fn random_layouts_are_aligned_apart_and_within_their_bounds() {
    let mut random = Random(2);
    let (mut fitted, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let mut case = case(&mut random);
        match place(&case.space, &case.taken, &case.claims) {
            Ok(placed) => {
                fitted += 1;
                check_placed(&case, &placed);
                assert_eq!(place(&case.space, &case.taken, &case.claims).unwrap(), placed);
                random.shuffle(&mut case.taken);
                assert_eq!(place(&case.space, &case.taken, &case.claims).unwrap(), placed);
            }
            Err(error) => {
                refused += 1;
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
                let least: u64 = case.claims.iter().map(|claim| claim.min).sum();
                let said = error.to_string();
                assert!(
                    said.contains(&format!("need at least {} MiB", least / MIB))
                        || said.contains("would lie over")
                        || said.contains("room for partitions from"),
                    "{said}"
                );
            }
        }
    }
    assert!(fitted > 5000 && refused > 1000, "{fitted} fitted, {refused} refused");
}

#[test]
fn on_an_empty_disk_the_sizes_add_up_to_all_of_it_in_any_order() {
    let mut random = Random(3);
    for _ in 0..5000 {
        let mut case = Case { taken: Vec::new(), ..case(&mut random) };
        case.space.alignment = MIB;
        case.claims.iter_mut().for_each(|claim| claim.start = None);
        let Ok(placed) = place(&case.space, &[], &case.claims) else { continue };
        let room = (case.space.end / MIB - 1) * MIB;
        let sum: u64 = placed.iter().map(|at| at.size).sum();
        let full = case
            .claims
            .iter()
            .zip(&placed)
            .all(|(claim, at)| Some(at.size) == claim.max || (claim.weight == 0 && at.size == claim.min));
        assert!(sum == room || full, "{sum} of {room}: {:?} {placed:?}", case.claims);
        let sizes: std::collections::BTreeMap<String, u64> =
            case.claims.iter().zip(&placed).map(|(claim, at)| (claim.name.clone(), at.size)).collect();
        random.shuffle(&mut case.claims);
        let again = place(&case.space, &[], &case.claims).unwrap();
        for (claim, at) in case.claims.iter().zip(again) {
            assert_eq!(at.size, sizes[&claim.name], "{:?}", case.claims);
        }
    }
}

fn space() -> Space {
    Space { start: 34 * 512, end: 1023 * MIB, alignment: MIB }
}

fn found(number: u32, name: &str, offset: u64, size: u64, kind: Option<&'static str>) -> ProbedPartition {
    ProbedPartition {
        number,
        name: Some(name.to_owned()),
        kind: PartitionKind::Gpt(partition_type::LINUX_GENERIC),
        unique_guid: Some(Guid([number as u8; 16])),
        offset: offset * MIB,
        size: size * MIB,
        file_system: kind.map(|kind| FileSystem {
            kind,
            label: Some(format!("{name}-fs")),
            uuid: Some("12345678-0000-4000-8000-000000000000".to_owned()),
            size: Some(size * MIB / 2),
            used: None,
            version: None,
        }),
    }
}

/// esp 1 to 101, root 101 to 301, data 401 to 601; gaps of 100 and of 422 MiB.
fn disk() -> Vec<ProbedPartition> {
    vec![
        found(1, "esp", 1, 100, Some("vfat")),
        found(2, "root", 101, 200, Some("ext4")),
        found(5, "data", 401, 200, Some("ext4")),
    ]
}

fn wanted(name: &str, size: u64) -> Wanted {
    Wanted {
        number: None,
        name: Some(name.to_owned()),
        unique_guid: None,
        kind: None,
        start: None,
        min: size * MIB,
        least: size * MIB,
        max: Some(size * MIB),
        weight: 0,
        file_system: None,
        should_exist: true,
        wipe_entry: false,
        resize: false,
    }
}

fn ext4(wipe: bool) -> Option<WantedFileSystem> {
    Some(WantedFileSystem { format: "ext4", label: None, uuid: None, wipe, must_be_new: None })
}

fn row(decided: &Decided) -> (Action, u32, u64, u64) {
    (decided.action, decided.number, decided.offset / MIB, decided.size / MIB)
}

#[test]
fn each_is_kept_made_anew_resized_or_deleted_with_its_reason() {
    let layout = vec![
        Wanted { wipe_entry: true, ..wanted("esp", 90) },
        Wanted { file_system: ext4(true), ..wanted("root", 200) },
        Wanted { file_system: ext4(false), max: None, resize: true, weight: 1, ..wanted("data", 100) },
        wanted("new", 50),
    ];
    let decided = decide(&space(), 128, &layout, &disk()).unwrap();
    let rows: Vec<_> = decided.iter().map(row).collect();
    assert_eq!(
        rows,
        [
            (Action::Wipe, 1, 1, 90),
            (Action::Wipe, 2, 101, 200),
            (Action::Resize, 5, 401, 622),
            (Action::Create, 4, 301, 50),
        ]
    );
    let reasons: Vec<&str> = decided.iter().map(|decided| decided.reason.as_str()).collect();
    assert_eq!(
        reasons,
        [
            "partition 1 \"esp\" has the label \"esp\", but it has 100 MiB, not 90 MiB; wipe_partition_entry is true",
            "partition 2 \"root\" has the label \"root\"; its ext4 is made anew: wipe_filesystem is true",
            "partition 5 \"data\" has the label \"data\"; resize it from 200 MiB to 622 MiB",
            "no partition is \"new\"",
        ]
    );
    assert_eq!(
        decided.iter().map(|decided| decided.entry_stays).collect::<Vec<_>>(),
        [false, true, true, false]
    );

    let gone = vec![
        wanted("esp", 100),
        Wanted { should_exist: false, wipe_entry: true, ..wanted("root", 1) },
        Wanted { number: Some(5), name: None, max: None, ..wanted("", 1) },
        Wanted { should_exist: false, ..wanted("never there", 1) },
    ];
    let decided = decide(&space(), 128, &gone, &disk()).unwrap();
    let actions: Vec<Action> = decided.iter().map(|decided| decided.action).collect();
    assert_eq!(actions, [Action::Keep, Action::Delete, Action::Keep]);
    assert_eq!(decided[2].reason, "partition 5 \"data\" has the number 5 and is as it is wanted");

    // A full table has room for what comes instead of what goes.
    let instead = vec![
        wanted("new", 50),
        wanted("esp", 100),
        Wanted { should_exist: false, wipe_entry: true, ..wanted("root", 1) },
        wanted("data", 200),
        wanted("newer", 50),
        wanted("newest", 50),
    ];
    let decided = decide(&space(), 5, &instead, &disk()).unwrap();
    let numbers: Vec<u32> = decided.iter().map(|decided| decided.number).collect();
    assert_eq!(numbers, [3, 1, 2, 5, 4, 2]);
}

#[test]
fn guid_and_type_find_a_partition_too() {
    let anything = || Wanted { name: None, max: None, ..wanted("", 1) };
    let layout = vec![
        Wanted { kind: Some(PartitionKind::Gpt(partition_type::LINUX_GENERIC)), ..anything() },
        Wanted { unique_guid: Some(Guid([5; 16])), ..anything() },
        Wanted { max: None, ..wanted("esp", 1) },
    ];
    let decided = decide(&space(), 128, &layout, &disk()).unwrap();
    // What has a name or a GUID goes first, whatever the order; the type finds what is left.
    assert_eq!(decided.iter().map(|decided| decided.number).collect::<Vec<_>>(), [2, 5, 1]);
    assert_eq!(decided[0].reason, "partition 2 \"root\" has the type linux-generic and is as it is wanted");
}

#[test]
fn what_nothing_allows_is_refused_in_full() {
    let keep = |name: &str| Wanted { max: None, ..wanted(name, 1) };
    let guid = Guid::from_uuid(uuid!("11111111-2222-4333-8444-555555555555"));
    let cases: Vec<(&str, Vec<Wanted>)> = vec![
        (
            "the disk holds partition 1 \"esp\" (vfat, 100 MiB), partition 5 \"data\" (ext4, 200 MiB), which the layout \
             does not mention",
            vec![keep("root")],
        ),
        (
            "partition 2 \"root\" (ext4, 200 MiB) has the label \"root\", but it has 200 MiB, not 10 MiB; say \
          wipe_partition_entry: true to make it anew, or resize: true",
            vec![keep("esp"), keep("data"), wanted("root", 10)],
        ),
        (
            "has the number 2, but its label is \"root\", not \"other\"; say wipe_partition_entry",
            vec![keep("esp"), keep("data"), Wanted { number: Some(2), ..keep("other") }],
        ),
        (
            "but its GUID is not 11111111-2222-4333-8444-555555555555; say",
            vec![keep("esp"), keep("data"), Wanted { unique_guid: Some(guid), ..keep("root") }],
        ),
        (
            "but its type is linux-generic, not swap; say",
            vec![
                keep("esp"),
                keep("data"),
                Wanted { kind: Some(PartitionKind::Gpt(partition_type::SWAP)), ..keep("root") },
            ],
        ),
        (
            "but it starts at 101 MiB, not at 5 MiB; say",
            vec![keep("esp"), keep("data"), Wanted { start: Some(5 * MIB), ..keep("root") }],
        ),
        (
            "has the label \"esp\", but there is a vfat on it, not a ext4; say wipe_filesystem: true",
            vec![keep("root"), keep("data"), Wanted { file_system: ext4(false), ..keep("esp") }],
        ),
        (
            "has the label \"root\" and should not exist; say wipe_partition_entry: true to delete it",
            vec![keep("esp"), keep("data"), Wanted { should_exist: false, ..keep("root") }],
        ),
        (
            "cannot become 99 MiB: the file system on it has 100 MiB; shrink that first",
            vec![keep("esp"), keep("root"), Wanted { resize: true, ..wanted("data", 99) }],
        ),
        (
            "partitions 2 and 5 have the type linux-generic: say which is meant by its number",
            vec![
                keep("esp"),
                Wanted {
                    name: None,
                    kind: Some(PartitionKind::Gpt(partition_type::LINUX_GENERIC)),
                    ..keep("")
                },
            ],
        ),
        (
            "the label of its ext4 is \"root-fs\", not \"x\"; say wipe_filesystem: true",
            vec![
                keep("esp"),
                keep("data"),
                Wanted {
                    file_system: ext4(false).map(|fs| WantedFileSystem { label: Some("x".into()), ..fs }),
                    ..keep("root")
                },
            ],
        ),
        (
            "but the machine's root file system is written anew; say wipe_filesystem: true",
            vec![
                keep("esp"),
                keep("data"),
                Wanted {
                    file_system: ext4(false).map(|fs| WantedFileSystem {
                        must_be_new: Some("the machine's root file system"),
                        ..fs
                    }),
                    ..keep("root")
                },
            ],
        ),
    ];
    for (expected, layout) in cases {
        let error = decide(&space(), 128, &layout, &disk()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exists, "{error}");
        assert!(error.to_string().contains(expected), "{expected}\n{error}");
    }
    // The gaps, one by one.
    let layout = vec![keep("esp"), keep("root"), keep("data"), wanted("new", 423)];
    let error = decide(&space(), 128, &layout, &disk()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!(
        error.to_string(),
        "the partitions need at least 423 MiB, the disk has 522 MiB in gaps of 100 MiB, 422 MiB for them: \"new\" 423 MiB"
    );
}

/// A disk that says nonsense of itself is refused, not followed.
#[test]
fn hostile_tables_end_in_an_error() {
    let mut random = Random(4);
    let mut accepted = 0;
    let odd = |random: &mut Random| match random.below(4) {
        0 => random.below(2048) * MIB,
        1 => u64::MAX - random.below(3),
        2 => random.below(1 << 31),
        _ => 0,
    };
    for _ in 0..20_000 {
        let count = 1 + random.below(4) as u32;
        let mut disk = Vec::new();
        let mut layout = Vec::new();
        for number in 1..=count {
            let mut old = found(number, "x", 0, 1, None);
            (old.offset, old.size) = (odd(&mut random), odd(&mut random));
            disk.push(old);
            layout.push(Wanted {
                number: Some(number),
                max: None,
                resize: random.chance(50),
                wipe_entry: random.chance(30),
                start: random.chance(10).then(|| odd(&mut random)),
                weight: 1,
                ..wanted("x", 1)
            });
        }
        if let Ok(decided) = decide(&space(), 128, &layout, &disk) {
            accepted += 1;
            let mut extents: Vec<(u64, u64)> = decided.iter().map(|d| (d.offset, d.size)).collect();
            extents.sort_unstable();
            for pair in extents.windows(2) {
                assert!(pair[0].0.checked_add(pair[0].1).unwrap() <= pair[1].0, "{extents:?} {layout:?}");
            }
        }
    }
    assert!(accepted > 100, "{accepted}");
}
