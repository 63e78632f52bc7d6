//! The files of a new volume: what stands in their records, and the small contents.

use std::collections::BTreeMap;

use super::NtfsOptions;
use super::index::{self, Collation};
use super::layout::Layout;
use super::record::{DIRECTORY, EXTENSION, Extent, IN_USE, Placed, Record, VIEW_INDEX, reference};
use super::security::{self, ADMINISTRATORS, READ_ONLY_ID, Shared, WRITABLE_ID};
use super::{file, kind, upcase, utf16};
use crate::field::put;

/// The name of an index of file names.
const NAMES: &str = "$I30";
// Flags of a file.
const HIDDEN_SYSTEM: u32 = 0x06;
const ARCHIVE: u32 = 0x20;
const HAS_NAMES: u32 = 0x1000_0000;
const HAS_VIEW: u32 = 0x2000_0000;
/// The name is one of Windows and one of DOS.
const WIN32_AND_DOS: u8 = 3;

/// A file's entry in its directory.
struct Name {
    number: u32,
    name: &'static str,
    flags: u32,
    allocated: u64,
    size: u64,
}

/// The records being made, and the two directories.
pub(super) struct Files<'l> {
    layout: &'l Layout,
    /// 100 nanoseconds since 1601.
    time: u64,
    records: BTreeMap<u32, Record>,
    root: Vec<(Vec<u16>, Vec<u8>)>,
    extend: Vec<(Vec<u16>, Vec<u8>)>,
}

/// The records, by number, as the disk has them, and the block with the entries of the root directory.
pub(super) struct Finished {
    pub(super) mft: Vec<u8>,
    pub(super) root_block: Vec<u8>,
}

impl<'l> Files<'l> {
    /// All files of a new volume.
    pub(super) fn create(layout: &'l Layout, options: &NtfsOptions, shared: &[Shared]) -> Finished {
        /// From 1601 to 1970.
        const EPOCH: u64 = 11_644_473_600;
        let time = options.timestamp.saturating_add(EPOCH).saturating_mul(10_000_000);
        let (records, root, extend) = Default::default();
        let mut files = Self { layout, time, records, root, extend };
        files.placed_files();
        files.volume(&options.label);
        files.bad_clusters();
        files.secure(shared);
        files.upcase();
        for number in file::RESERVED..file::SPARE {
            files.begin(number, 0, HIDDEN_SYSTEM, None);
            files.add(number, kind::SECURITY_DESCRIPTOR, "", &security::writable());
            files.add(number, kind::DATA, "", &[]);
        }
        files.extensions();
        let root_block = files.root_directory();
        Finished { mft: files.seal(), root_block }
    }

    fn record(&mut self, number: u32) -> &mut Record {
        self.records.entry(number).or_insert_with(|| Record::new(number, IN_USE))
    }

    fn add(&mut self, number: u32, kind: u32, name: &'static str, value: &[u8]) {
        self.record(number).resident(kind, name, value);
    }

    fn place(&mut self, number: u32, kind: u32, name: &'static str, extent: Extent, size: u64) {
        let cluster_size = self.layout.boot.cluster_size;
        let initialized = if extent.lcn.is_some() { size } else { 0 };
        self.record(number).placed(kind, name, Placed { extent, cluster_size, size, initialized });
    }

    /// Begins a record: flags of the record, flags of the file, and the number of a shared security descriptor,
    /// without which the older and shorter form will do.
    fn begin(&mut self, number: u32, record_flags: u16, flags: u32, security_id: Option<u32>) {
        let mut value = vec![0; if security_id.is_some() { 72 } else { 48 }];
        for at in (0..32).step_by(8) {
            put(&mut value, at, &self.time.to_le_bytes());
        }
        put(&mut value, 32, &flags.to_le_bytes());
        if let Some(id) = security_id {
            put(&mut value, 52, &id.to_le_bytes());
        }
        self.records.insert(number, Record::new(number, IN_USE | record_flags));
        self.add(number, kind::STANDARD_INFORMATION, "", &value);
    }

    /// Gives a file its name in a directory.
    fn name(&mut self, directory: u32, name: &Name) {
        let mut key = vec![0; 66];
        put(&mut key, 0, &reference(directory).to_le_bytes());
        for at in (8..40).step_by(8) {
            put(&mut key, at, &self.time.to_le_bytes());
        }
        put(&mut key, 40, &name.allocated.to_le_bytes());
        put(&mut key, 48, &name.size.to_le_bytes());
        put(&mut key, 56, &name.flags.to_le_bytes());
        let text = utf16(name.name);
        key[64] = (text.len() / 2) as u8;
        key[65] = WIN32_AND_DOS;
        key.extend(text);
        self.add(name.number, kind::FILE_NAME, "", &key);
        let entry = index::file_entry(self.record(name.number).reference(), &key);
        // The names of system files have ASCII letters only.
        let sort_by = name.name.to_ascii_uppercase().encode_utf16().collect();
        let entries = if directory == file::EXTEND { &mut self.extend } else { &mut self.root };
        entries.push((sort_by, entry));
    }

    /// The files that are just contents somewhere.
    fn placed_files(&mut self) {
        let layout = self.layout;
        let whole = |extent| (extent, layout.len(extent));
        let definitions = attribute_definitions().len() as u64;
        let files = [
            (file::MFT, "$MFT", whole(layout.mft), Some(READ_ONLY_ID)),
            (file::MFT_MIRROR, "$MFTMirr", whole(layout.mirror), Some(READ_ONLY_ID)),
            (file::LOG_FILE, "$LogFile", whole(layout.log), Some(READ_ONLY_ID)),
            (file::ATTRIBUTE_DEFINITIONS, "$AttrDef", (layout.attribute_definitions, definitions), None),
            (file::BITMAP, "$Bitmap", (layout.bitmap, layout.bitmap_size), Some(READ_ONLY_ID)),
            (file::BOOT, "$Boot", (layout.boot_file, super::boot::BOOT_SIZE), None),
        ];
        for (number, name, (extent, size), security_id) in files {
            self.begin(number, 0, HIDDEN_SYSTEM, security_id);
            let allocated = layout.len(extent);
            self.name(file::ROOT, &Name { number, name, flags: HIDDEN_SYSTEM, allocated, size });
            if security_id.is_none() {
                self.add(number, kind::SECURITY_DESCRIPTOR, "", &security::read_only());
            }
            self.place(number, kind::DATA, "", extent, size);
        }
        self.place(file::MFT, kind::BITMAP, "", layout.mft_bitmap, mft_bitmap().len() as u64);
    }

    fn named(&mut self, number: u32, name: &'static str, flags: u32) {
        self.name(file::ROOT, &Name { number, name, flags, allocated: 0, size: 0 });
    }

    fn volume(&mut self, label: &str) {
        self.begin(file::VOLUME, 0, HIDDEN_SYSTEM, None);
        self.named(file::VOLUME, "$Volume", HIDDEN_SYSTEM);
        self.add(file::VOLUME, kind::SECURITY_DESCRIPTOR, "", &security::writable());
        self.add(file::VOLUME, kind::VOLUME_NAME, "", &utf16(label));
        // Version 3.1, no flags: clean.
        self.add(file::VOLUME, kind::VOLUME_INFORMATION, "", &[0, 0, 0, 0, 0, 0, 0, 0, 3, 1, 0, 0]);
        self.add(file::VOLUME, kind::DATA, "", &[]);
    }

    /// A hole as large as the volume: no cluster is bad.
    fn bad_clusters(&mut self) {
        self.begin(file::BAD_CLUSTERS, 0, HIDDEN_SYSTEM, Some(READ_ONLY_ID));
        self.named(file::BAD_CLUSTERS, "$BadClus", HIDDEN_SYSTEM);
        self.add(file::BAD_CLUSTERS, kind::DATA, "", &[]);
        let hole = Extent { lcn: None, clusters: self.layout.clusters };
        self.place(file::BAD_CLUSTERS, kind::DATA, "$Bad", hole, self.layout.len(hole));
    }

    /// The shared security descriptors, and where each is, by hash and by number.
    fn secure(&mut self, shared: &[Shared]) {
        let number = file::SECURE;
        self.begin(number, VIEW_INDEX, HIDDEN_SYSTEM | HAS_VIEW, Some(WRITABLE_ID));
        self.named(number, "$Secure", HIDDEN_SYSTEM | HAS_VIEW);
        let size = security::sds(shared).len() as u64;
        self.place(number, kind::DATA, "$SDS", self.layout.sds, size);
        let mut by_hash: Vec<&Shared> = shared.iter().collect();
        by_hash.sort_by_key(|one| (one.hash, one.id));
        let by_hash: Vec<_> = by_hash
            .into_iter()
            // Windows fills these entries up with "II".
            .map(|one| index::view_entry(&one.header[..8], &one.header, b"I\0I\0"))
            .collect();
        self.view(number, "$SDH", Collation::SecurityHash, &by_hash);
        let by_id: Vec<_> =
            shared.iter().map(|one| index::view_entry(&one.id.to_le_bytes(), &one.header, &[])).collect();
        self.view(number, "$SII", Collation::Number, &by_id);
    }

    fn view(&mut self, number: u32, name: &'static str, by: Collation, entries: &[Vec<u8>]) {
        let root = index::small_root(0, by, self.layout.boot.cluster_size, entries);
        self.add(number, kind::INDEX_ROOT, name, &root);
    }

    fn upcase(&mut self) {
        let number = file::UPCASE;
        let extent = self.layout.upcase;
        let (allocated, size) = (self.layout.len(extent), upcase::bytes().len() as u64);
        self.begin(number, 0, HIDDEN_SYSTEM, Some(READ_ONLY_ID));
        self.name(file::ROOT, &Name { number, name: "$UpCase", flags: HIDDEN_SYSTEM, allocated, size });
        self.place(number, kind::DATA, "", extent, size);
        self.add(number, kind::DATA, "$Info", &upcase::info());
    }

    /// `$Extend`, whose names must stand in its record, and the files in it.
    fn extensions(&mut self) {
        let flags = HIDDEN_SYSTEM | ARCHIVE | HAS_VIEW;
        let files =
            [(file::QUOTA, "$Quota"), (file::OBJECT_IDS, "$ObjId"), (file::REPARSE_POINTS, "$Reparse")];
        for (number, name) in files {
            self.begin(number, EXTENSION | VIEW_INDEX, flags, Some(WRITABLE_ID));
            self.name(file::EXTEND, &Name { number, name, flags, allocated: 0, size: 0 });
        }
        let (owners, quotas) = quota_entries(self.time);
        self.view(file::QUOTA, "$O", Collation::SecurityIdentifier, &owners);
        self.view(file::QUOTA, "$Q", Collation::Number, &quotas);
        self.view(file::OBJECT_IDS, "$O", Collation::Numbers, &[]);
        self.view(file::REPARSE_POINTS, "$R", Collation::Numbers, &[]);

        self.begin(file::EXTEND, DIRECTORY, HIDDEN_SYSTEM, Some(WRITABLE_ID));
        self.named(file::EXTEND, "$Extend", HIDDEN_SYSTEM | HAS_NAMES);
        let entries = sorted(std::mem::take(&mut self.extend));
        let cluster_size = self.layout.boot.cluster_size;
        let root = index::small_root(kind::FILE_NAME, Collation::FileName, cluster_size, &entries);
        self.add(file::EXTEND, kind::INDEX_ROOT, NAMES, &root);
    }

    /// The root directory; it has itself as an entry. Returns the block with the entries.
    fn root_directory(&mut self) -> Vec<u8> {
        let number = file::ROOT;
        self.begin(number, DIRECTORY, HIDDEN_SYSTEM, None);
        self.named(number, ".", HIDDEN_SYSTEM | HAS_NAMES);
        self.add(number, kind::SECURITY_DESCRIPTOR, "", &security::root());
        let cluster_size = self.layout.boot.cluster_size;
        let root = index::root_of_block(kind::FILE_NAME, Collation::FileName, cluster_size);
        self.add(number, kind::INDEX_ROOT, NAMES, &root);
        let size = u64::from(self.layout.boot.index_block_size);
        self.place(number, kind::INDEX_ALLOCATION, NAMES, self.layout.root_index, size);
        // The first block is in use.
        self.add(number, kind::BITMAP, NAMES, &1_u64.to_le_bytes());
        index::block(&sorted(std::mem::take(&mut self.root)))
    }

    /// The `$MFT`: all records, and free ones to the end of its last cluster.
    fn seal(&self) -> Vec<u8> {
        let record_size = self.layout.boot.record_size;
        let count = self.layout.len(self.layout.mft) / u64::from(record_size);
        let records = (0..count as u32).flat_map(|number| match self.records.get(&number) {
            Some(record) => record.seal(record_size),
            None => Record::new(number, 0).seal(record_size),
        });
        records.collect()
    }
}

fn sorted(mut entries: Vec<(Vec<u16>, Vec<u8>)>) -> Vec<Vec<u8>> {
    entries.sort();
    entries.into_iter().map(|(_, entry)| entry).collect()
}

/// Which records of the `$MFT` are in use; it has 27 to 64 of them.
pub(super) fn mft_bitmap() -> [u8; 8] {
    let used = (0..file::COUNT).filter(|number| !(file::SPARE..file::QUOTA).contains(number));
    used.fold(0_u64, |bits, number| bits | 1 << number).to_le_bytes()
}

/// `$O`: who has which quota. `$Q`: the quotas; 1 is that of everybody without one. None is limited.
fn quota_entries(time: u64) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    const EVERYBODY: u32 = 1;
    const FIRST: u32 = 0x100;
    let administrators = security::sid(ADMINISTRATORS);
    let quota = |owner: &[u8]| {
        let mut bytes = vec![0; 48];
        // Version, and that the default limits hold.
        bytes[0] = 2;
        bytes[4] = 1;
        put(&mut bytes, 16, &time.to_le_bytes());
        // Threshold and limit: none.
        put(&mut bytes, 24, &[0xff; 16]);
        bytes.extend(owner);
        bytes
    };
    // What follows the number is the same on every volume.
    let owners = vec![index::view_entry(&administrators, &FIRST.to_le_bytes(), &[0x20, 0, 0, 0])];
    let quotas = vec![
        index::view_entry(&EVERYBODY.to_le_bytes(), &quota(&[]), &[]),
        index::view_entry(&FIRST.to_le_bytes(), &quota(&administrators), &[]),
    ];
    (owners, quotas)
}

/// `$AttrDef`: for each type of attribute its name, number, flags, and least and greatest size.
pub(super) fn attribute_definitions() -> Vec<u8> {
    const INDEXED: u32 = 0x02;
    const RESIDENT: u32 = 0x40;
    const LOGGED: u32 = 0x80;
    const ANY: u64 = u64::MAX;
    let definitions = [
        ("$STANDARD_INFORMATION", 0x10, RESIDENT, 0x30, 0x48),
        ("$ATTRIBUTE_LIST", 0x20, LOGGED, 0, ANY),
        ("$FILE_NAME", 0x30, RESIDENT | INDEXED, 0x44, 0x242),
        ("$OBJECT_ID", 0x40, RESIDENT, 0, 0x100),
        ("$SECURITY_DESCRIPTOR", 0x50, LOGGED, 0, ANY),
        ("$VOLUME_NAME", 0x60, RESIDENT, 2, 0x100),
        ("$VOLUME_INFORMATION", 0x70, RESIDENT, 12, 12),
        ("$DATA", 0x80, 0, 0, ANY),
        ("$INDEX_ROOT", 0x90, RESIDENT, 0, ANY),
        ("$INDEX_ALLOCATION", 0xa0, LOGGED, 0, ANY),
        ("$BITMAP", 0xb0, LOGGED, 0, ANY),
        ("$REPARSE_POINT", 0xc0, LOGGED, 0, 0x4000),
        ("$EA_INFORMATION", 0xd0, RESIDENT, 8, 8),
        ("$EA", 0xe0, 0, 0, 0x1_0000),
        ("$LOGGED_UTILITY_STREAM", 0x100, LOGGED, 0, 0x1_0000),
    ];
    const LEN: usize = 160;
    // An empty one ends the table.
    let mut bytes = vec![0; (definitions.len() + 1) * LEN];
    for ((name, kind, flags, least, most), bytes) in definitions.into_iter().zip(bytes.chunks_exact_mut(LEN))
    {
        let (kind, flags, least): (u32, u32, u64) = (kind, flags, least);
        put(bytes, 0, &utf16(name));
        put(bytes, 128, &kind.to_le_bytes());
        put(bytes, 140, &flags.to_le_bytes());
        put(bytes, 144, &least.to_le_bytes());
        put(bytes, 152, &most.to_le_bytes());
    }
    bytes
}
