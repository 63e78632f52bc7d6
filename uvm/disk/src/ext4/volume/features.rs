//! The features of an ext2, ext3 or ext4, by the names dumpe2fs has for them.

use crate::{Error, ErrorKind, Result};

// `s_feature_compat`.
pub(super) const HAS_JOURNAL: u32 = 0x4;
pub(super) const RESIZE_INODE: u32 = 0x10;
pub(super) const SPARSE_SUPER2: u32 = 0x200;
pub(super) const FAST_COMMIT: u32 = 0x400;
pub(super) const STABLE_INODES: u32 = 0x800;
pub(super) const ORPHAN_FILE: u32 = 0x1000;
// `s_feature_incompat`.
pub(super) const RECOVER: u32 = 0x4;
pub(super) const JOURNAL_DEV: u32 = 0x8;
pub(super) const META_BG: u32 = 0x10;
pub(super) const EXTENTS: u32 = 0x40;
pub(super) const BIT64: u32 = 0x80;
pub(super) const FLEX_BG: u32 = 0x200;
pub(super) const EA_INODE: u32 = 0x400;
pub(super) const CSUM_SEED: u32 = 0x2000;
pub(super) const INLINE_DATA: u32 = 0x8000;
// `s_feature_ro_compat`.
pub(super) const SPARSE_SUPER: u32 = 0x1;
pub(super) const GDT_CSUM: u32 = 0x10;
pub(super) const QUOTA: u32 = 0x100;
pub(super) const BIGALLOC: u32 = 0x200;
pub(super) const METADATA_CSUM: u32 = 0x400;
pub(super) const ORPHAN_PRESENT: u32 = 0x1_0000;

/// Which word of the superblock a feature is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    Compat,
    Incompat,
    RoCompat,
}

/// Word, bit, name, and whether a resize goes along with it.
const KNOWN: [(Word, u32, &str, bool); 41] = [
    (Word::Compat, 0x1, "dir_prealloc", true),
    (Word::Compat, 0x2, "imagic_inodes", false),
    (Word::Compat, HAS_JOURNAL, "has_journal", true),
    (Word::Compat, 0x8, "ext_attr", true),
    (Word::Compat, RESIZE_INODE, "resize_inode", true),
    (Word::Compat, 0x20, "dir_index", true),
    (Word::Compat, 0x40, "lazy_bg", false),
    (Word::Compat, 0x80, "exclude_inode", false),
    (Word::Compat, 0x100, "exclude_bitmap", false),
    (Word::Compat, SPARSE_SUPER2, "sparse_super2", true),
    (Word::Compat, FAST_COMMIT, "fast_commit", true),
    (Word::Compat, STABLE_INODES, "stable_inodes", true),
    (Word::Compat, ORPHAN_FILE, "orphan_file", true),
    (Word::Incompat, 0x1, "compression", false),
    (Word::Incompat, 0x2, "filetype", true),
    (Word::Incompat, RECOVER, "needs_recovery", true),
    (Word::Incompat, JOURNAL_DEV, "journal_dev", false),
    (Word::Incompat, META_BG, "meta_bg", true),
    (Word::Incompat, EXTENTS, "extent", true),
    (Word::Incompat, BIT64, "64bit", true),
    (Word::Incompat, 0x100, "mmp", false),
    (Word::Incompat, FLEX_BG, "flex_bg", true),
    (Word::Incompat, EA_INODE, "ea_inode", true),
    (Word::Incompat, 0x1000, "dirdata", false),
    (Word::Incompat, CSUM_SEED, "metadata_csum_seed", true),
    (Word::Incompat, 0x4000, "large_dir", true),
    (Word::Incompat, INLINE_DATA, "inline_data", true),
    (Word::Incompat, 0x1_0000, "encrypt", true),
    (Word::Incompat, 0x2_0000, "casefold", true),
    (Word::RoCompat, SPARSE_SUPER, "sparse_super", true),
    (Word::RoCompat, 0x2, "large_file", true),
    (Word::RoCompat, 0x4, "btree_dir", true),
    (Word::RoCompat, 0x8, "huge_file", true),
    (Word::RoCompat, GDT_CSUM, "uninit_bg", true),
    (Word::RoCompat, 0x20, "dir_nlink", true),
    (Word::RoCompat, 0x40, "extra_isize", true),
    (Word::RoCompat, QUOTA, "quota", true),
    (Word::RoCompat, METADATA_CSUM, "metadata_csum", true),
    (Word::RoCompat, 0x2000, "project", true),
    (Word::RoCompat, 0x8000, "verity", true),
    (Word::RoCompat, ORPHAN_PRESENT, "orphan_present", true),
];

/// The three words as they are in a superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Features {
    pub(super) compat: u32,
    pub(super) incompat: u32,
    pub(super) ro_compat: u32,
}

impl Features {
    fn word(self, word: Word) -> u32 {
        match word {
            Word::Compat => self.compat,
            Word::Incompat => self.incompat,
            Word::RoCompat => self.ro_compat,
        }
    }

    /// As blkid names it.
    pub(super) fn format(self) -> &'static str {
        let ext3_incompat = 0x2 | RECOVER | META_BG;
        let ext3_ro_compat = SPARSE_SUPER | 0x2 | 0x4;
        if self.incompat & !ext3_incompat != 0 || self.ro_compat & !ext3_ro_compat != 0 {
            "ext4"
        } else if self.compat & HAS_JOURNAL != 0 {
            "ext3"
        } else {
            "ext2"
        }
    }

    /// Refuses a journal on a device of its own: its superblock has no sizes of groups.
    pub(super) fn check_file_system(self) -> Result<()> {
        if self.incompat & JOURNAL_DEV == 0 {
            return Ok(());
        }
        Err(unsupported("this is an ext journal on a device of its own, not a file system"))
    }

    /// Refuses the first feature with which block bitmaps may not be what we take them for.
    pub(super) fn check_readable(self) -> Result<()> {
        let known = |word| KNOWN.iter().filter(|k| k.0 == word).fold(0, |all, k| all | k.1);
        let harmless = 0x80 | 0x800 | 0x1000 | 0x4000 | BIGALLOC;
        let unknown_incompat = self.incompat & !known(Word::Incompat);
        let unknown_ro = self.ro_compat & !(known(Word::RoCompat) | harmless);
        match (unknown_incompat, unknown_ro) {
            (0, 0) => Ok(()),
            (bits, 0) => Err(unsupported(format!("ext incompatible feature bits {bits:#x} are not known"))),
            (_, bits) => Err(unsupported(format!("ext read-only feature bits {bits:#x} are not known"))),
        }
    }

    /// Refuses the first feature that a resize could damage.
    pub(super) fn check_resizable(self) -> Result<()> {
        let bigalloc = (Word::RoCompat, BIGALLOC, "bigalloc", false);
        for (word, bit, name, fine) in KNOWN.iter().copied().chain([bigalloc]) {
            if !fine && self.word(word) & bit != 0 {
                return Err(unsupported(format!(
                    "an ext file system with the feature {name} is not resized"
                )));
            }
        }
        for word in [Word::Compat, Word::Incompat, Word::RoCompat] {
            let known = KNOWN.iter().filter(|k| k.0 == word).fold(0, |all, k| all | k.1);
            let unknown = self.word(word) & !known;
            if unknown != 0 {
                let context = format!("ext {word:?} feature bits {unknown:#x} are not known: not resized");
                return Err(unsupported(context));
            }
        }
        Ok(())
    }
}

fn unsupported(context: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unsupported, context)
}
