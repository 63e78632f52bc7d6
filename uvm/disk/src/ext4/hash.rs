//! The hash of names that a directory's index is sorted by: half MD4 over signed bytes, with the caller's
//! seed (`Documentation/filesystems/ext4`, "Hash Tree Directories"; RFC 1320's rounds, cut to eight steps).

/// What the kernel keeps for the end of a directory, when it reads one.
const END: u32 = 0xFFFF_FFFE;
const INITIAL: [u32; 4] = [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476];
/// Bytes of the name one round takes.
const CHUNK: usize = 32;

/// The hash function of one file system.
#[derive(Debug, Clone, Copy)]
pub(super) struct NameHash {
    initial: [u32; 4],
}

impl NameHash {
    /// A seed of zeros is none.
    pub(super) fn new(seed: &[u8; 16]) -> Self {
        let mut initial = INITIAL;
        if seed.iter().any(|byte| *byte != 0) {
            for (word, bytes) in initial.iter_mut().zip(seed.chunks_exact(4)) {
                *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        Self { initial }
    }

    /// The hash of a name: even, for the lowest bit of an index entry says that a hash goes on in it.
    pub(super) fn of(&self, name: &[u8]) -> u32 {
        let mut state = self.initial;
        let mut rest = name;
        while !rest.is_empty() {
            transform(&mut state, &words(rest));
            rest = &rest[CHUNK.min(rest.len())..];
        }
        match state[1] & !1 {
            END => END - 2,
            hash => hash,
        }
    }
}

/// Eight words of the name's next 32 bytes, padded with its length.
fn words(rest: &[u8]) -> [u32; 8] {
    let length = rest.len() as u32;
    let padding = (length | length << 8) & 0xFFFF;
    let padding = padding | padding << 16;
    let mut words = [padding; 8];
    for (word, bytes) in words.iter_mut().zip(rest.chunks(4)) {
        for byte in bytes {
            *word = (*word << 8).wrapping_add_signed(i32::from(byte.cast_signed()));
        }
    }
    words
}

fn transform(state: &mut [u32; 4], words: &[u32; 8]) {
    type Mix = fn(u32, u32, u32) -> u32;
    let choose: Mix = |x, y, z| z ^ (x & (y ^ z));
    let majority: Mix = |x, y, z| (x & y).wrapping_add((x ^ y) & z);
    let parity: Mix = |x, y, z| x ^ y ^ z;
    let rounds = [
        (choose, 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (majority, 0x5A82_7999, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]),
        (parity, 0x6ED9_EBA1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (mix, constant, order, shifts) in rounds {
        for (step, word) in order.into_iter().enumerate() {
            let sum = a.wrapping_add(mix(b, c, d)).wrapping_add(words[word]).wrapping_add(constant);
            (a, b, c, d) = (d, sum.rotate_left(shifts[step % 4]), b, c);
        }
    }
    for (word, new) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_debugfs() {
        // debugfs -R 'dx_hash -h half_md4 -s 5a5a5a5a-5a5a-5a5a-5a5a-5a5a5a5a5a5a "…"'
        let hash = |seed, name: &str| NameHash::new(&[seed; 16]).of(name.as_bytes());
        assert_eq!(hash(0x5A, "a"), 0x5528_4482);
        assert_eq!(hash(0x5A, "hello"), 0xE4DD_FB5C);
        assert_eq!(hash(0x5A, "exactly thirty-two bytes long..."), 0xADA1_5622);
        assert_eq!(hash(0, "a"), 0xD5FA_7D7A);
        let long = "a rather long file name with more than thirty-two bytes in it.txt";
        assert_eq!(hash(0, long), 0xE14A_8188);
        assert_eq!(hash(0, "gr\u{fc}\u{df}e"), 0xD75E_0AD8);
    }
}
