//! The header of a Linux swap area, version 1.

use uuid::Uuid;

use crate::field::{expect, flush, put, read, write};
use crate::{BlockDevice, Error, ErrorKind, Result};

/// Bytes of a label.
const MAX_LABEL: usize = 16;
/// Signatures of what was on the device before are at its two ends.
const WIPED: u64 = 1 << 20;
/// The kernel refuses less.
const MIN_PAGES: u64 = 10;

/// Bytes of a page of the machines there are; the signature ends the first one.
pub(crate) const PAGE_SIZES: [u32; 5] = [4096, 8192, 16_384, 32_768, 65_536];
/// Signatures of an area that the memory of a sleeping machine lies in: of the kernel, uswsusp and Tux on Ice.
pub(crate) const SLEEPING: [&[u8]; 4] = [b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB000"];

/// Whether the memory of a sleeping machine lies here (hibernation, kernel or uswsusp). That machine goes on with
/// its file systems as it remembers them, so nobody else may change them.
pub fn holds_sleeping_machine(device: &dyn BlockDevice) -> Result<bool> {
    for page_size in PAGE_SIZES.map(u64::from) {
        if page_size > device.geometry().size {
            break;
        }
        let signature = read(device, page_size - 10, 10, "reading the signature of a swap area")?;
        if SLEEPING.iter().any(|sleeping| signature.starts_with(sleeping)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes a swap area of the whole device, and reads its header back; what was on the device is gone with this call,
/// unless it is refused. The list of bad pages is empty. The signature goes last, in one logical block.
pub fn write_swap_header(device: &dyn BlockDevice, uuid: Uuid, label: &str, page_size: u32) -> Result<()> {
    if !page_size.is_power_of_two() || !(4096..=65_536).contains(&page_size) {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("swap pages of {page_size} bytes: powers of two from 4096 to 65536 are possible"),
        ));
    }
    if label.len() > MAX_LABEL || label.contains('\0') {
        return Err(Error::new(ErrorKind::Invalid, format!("swap label {label:?}: at most 16 bytes")));
    }
    let geometry = device.geometry();
    let pages = geometry.size / u64::from(page_size);
    if pages < MIN_PAGES {
        return Err(Error::new(ErrorKind::NoSpace, format!("swap on {pages} pages: at least {MIN_PAGES}")));
    }
    // The header counts in 32 bits; the kernel uses what it says.
    let last_page = u32::try_from(pages - 1).unwrap_or(u32::MAX);
    let mut page = vec![0; page_size as usize];
    put(&mut page, 1024, &1u32.to_le_bytes());
    put(&mut page, 1028, &last_page.to_le_bytes());
    put(&mut page, 1036, uuid.as_bytes());
    put(&mut page, 1052, label.as_bytes());
    put(&mut page, page_size as usize - 10, b"SWAPSPACE2");

    let wiped = WIPED.min(geometry.size);
    for offset in [0, geometry.size - wiped] {
        let zeroed = device.write_zeroes(offset, wiped);
        zeroed.map_err(|e| Error::io("wiping the ends of the device before making swap", offset, e))?;
    }
    flush(device, "flushing the wiped ends of the device")?;
    let signature = page.len() - (geometry.logical_block_size as usize).min(page.len());
    if signature > 0 {
        write(device, 0, &page[..signature], "writing the swap header")?;
        flush(device, "flushing the swap header")?;
    }
    write(device, signature as u64, &page[signature..], "writing the swap signature")?;
    flush(device, "flushing the swap signature")?;
    expect(device, 0, &page, "reading back the swap header")
}
