//! What `uvm mkfs` is told.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use uuid::Uuid;
use uvm_disk::fat::FatType;

use super::super::{block_size, size};

/// `uvm mkfs` and what follows.
#[derive(Args)]
pub(in crate::command) struct MkfsArguments {
    #[command(subcommand)]
    pub(super) kind: Kind,
}

#[derive(Subcommand)]
pub(super) enum Kind {
    /// ext4: extents, a journal, checksums.
    Ext4(ExtArguments),
    /// ext3: block maps and a journal.
    Ext3(ExtArguments),
    /// ext2: block maps, no journal.
    Ext2(ExtArguments),
    /// FAT12, FAT16 or FAT32.
    #[command(visible_alias = "vfat")]
    Fat(FatArguments),
    /// An empty NTFS volume.
    Ntfs(NtfsArguments),
    /// A swap area.
    Swap(SwapArguments),
}

impl Kind {
    pub(super) fn target(&self) -> &TargetArguments {
        match self {
            Self::Ext4(arguments) | Self::Ext3(arguments) | Self::Ext2(arguments) => &arguments.target,
            Self::Fat(arguments) => &arguments.target,
            Self::Ntfs(arguments) => &arguments.target,
            Self::Swap(arguments) => &arguments.target,
        }
    }

    pub(super) fn archives(&self) -> &[PathBuf] {
        match self {
            Self::Ext4(arguments) | Self::Ext3(arguments) | Self::Ext2(arguments) => {
                &arguments.contents.from_tar
            }
            Self::Fat(arguments) => &arguments.contents.from_tar,
            Self::Ntfs(_) | Self::Swap(_) => &[],
        }
    }
}

#[derive(Args)]
pub(super) struct TargetArguments {
    /// Device or file.
    pub(super) path: PathBuf,
    /// Create the file, or make it this large: bytes, or with K, M, G, T.
    #[arg(long, value_parser = size::parse)]
    pub(super) size: Option<u64>,
    /// Take away what the device holds.
    #[arg(long)]
    pub(super) force: bool,
    /// Logical block size of a plain file.
    #[arg(long, default_value_t = 512, value_parser = block_size)]
    pub(super) logical_block_size: u32,
}

#[derive(Args)]
pub(super) struct ContentsArguments {
    /// Fill it from a tar archive, plain, gzip or Zstandard; `-` is standard input. Several are applied one over the
    /// other, as the layers of an image.
    #[arg(long, value_name = "FILE")]
    pub(super) from_tar: Vec<PathBuf>,
}

#[derive(Args)]
pub(super) struct ExtArguments {
    #[command(flatten)]
    pub(super) target: TargetArguments,
    #[command(flatten)]
    pub(super) contents: ContentsArguments,
    /// 1024, 2048 or 4096 bytes.
    #[arg(long, short, value_name = "BYTES", default_value_t = 4096)]
    pub(super) block_size: u32,
    /// At most 16 bytes.
    #[arg(long, short = 'L', default_value = "")]
    pub(super) label: String,
    /// The file system's UUID; random where it is missing.
    #[arg(long, short = 'U')]
    pub(super) uuid: Option<Uuid>,
    /// Bytes of the device for each inode; by its size where it is missing, as mke2fs has it.
    #[arg(long, short = 'i', value_name = "BYTES", conflicts_with = "inodes")]
    pub(super) inode_ratio: Option<u32>,
    /// Number of inodes, at least.
    #[arg(long, short = 'N', value_name = "COUNT")]
    pub(super) inodes: Option<u32>,
    /// 128, 256, 512 or 1024 bytes.
    #[arg(long, short = 'I', value_name = "BYTES", default_value_t = 256)]
    pub(super) inode_size: u16,
    /// Percent of the blocks that only root may take.
    #[arg(long, short = 'm', value_name = "PERCENT", default_value_t = 5)]
    pub(super) reserved_percent: u8,
    /// Leave the journal out.
    #[arg(long)]
    pub(super) no_journal: bool,
}

#[derive(Args)]
pub(super) struct FatArguments {
    #[command(flatten)]
    pub(super) target: TargetArguments,
    #[command(flatten)]
    pub(super) contents: ContentsArguments,
    /// 12, 16 or 32; by its size where it is missing.
    #[arg(long = "type", value_name = "BITS", value_parser = fat_type)]
    pub(super) fat_type: Option<FatType>,
    /// Bytes, a power of two.
    #[arg(long, visible_alias = "block-size", value_name = "BYTES")]
    pub(super) cluster_size: Option<u32>,
    /// At most 11 characters, in upper case.
    #[arg(long, short = 'L', default_value = "")]
    pub(super) label: String,
    /// The serial number, XXXX-XXXX; random where it is missing.
    #[arg(long, short = 'U', value_parser = volume_id)]
    pub(super) uuid: Option<u32>,
}

#[derive(Args)]
pub(super) struct NtfsArguments {
    #[command(flatten)]
    pub(super) target: TargetArguments,
    /// 512 bytes to 64 KiB, a power of two.
    #[arg(long, visible_alias = "block-size", value_name = "BYTES")]
    pub(super) cluster_size: Option<u32>,
    /// At most 128 characters; Windows shows 32.
    #[arg(long, short = 'L', default_value = "")]
    pub(super) label: String,
    /// The serial number, sixteen hexadecimal digits; random where it is missing.
    #[arg(long, short = 'U', value_parser = serial)]
    pub(super) uuid: Option<u64>,
}

#[derive(Args)]
pub(super) struct SwapArguments {
    #[command(flatten)]
    pub(super) target: TargetArguments,
    /// Bytes of a page of the machine that uses it.
    #[arg(long, visible_alias = "block-size", value_name = "BYTES", default_value_t = 4096)]
    pub(super) page_size: u32,
    /// At most 16 bytes.
    #[arg(long, short = 'L', default_value = "")]
    pub(super) label: String,
    /// Random where it is missing.
    #[arg(long, short = 'U')]
    pub(super) uuid: Option<Uuid>,
}

fn fat_type(text: &str) -> Result<FatType, String> {
    match text {
        "12" => Ok(FatType::Fat12),
        "16" => Ok(FatType::Fat16),
        "32" => Ok(FatType::Fat32),
        _ => Err("12, 16 or 32".to_owned()),
    }
}

fn serial(text: &str) -> Result<u64, String> {
    let number = hexadecimal(text, 16);
    number.ok_or_else(|| "sixteen hexadecimal digits".to_owned())
}

/// Exactly so many digits.
fn hexadecimal(text: &str, digits: usize) -> Option<u64> {
    let all = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if all { u64::from_str_radix(text, 16).ok() } else { None }
}

/// As blkid shows it; the hyphen may be left out, as mkfs.fat wants it.
fn volume_id(text: &str) -> Result<u32, String> {
    let number = hexadecimal(&text.replacen('-', "", 1), 8).and_then(|number| u32::try_from(number).ok());
    number.ok_or_else(|| "eight hexadecimal digits, XXXX-XXXX".to_owned())
}
