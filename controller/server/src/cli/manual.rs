//! Completion and man pages, made from the command line itself. Both work without a controller.

use std::path::Path;

use clap_complete::Shell;

use super::failure::{Failure, Result};
use super::session::{print, write_line};

pub(super) fn completion(shell: Shell, mut whole: clap::Command) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut whole, "uvm-controller", &mut text);
    // clap_complete 4.6 writes the hyphen of our name in two ways, and bash then completes no command's flags
    // (clap-rs/clap issue 6421). Where that is mended there is nothing to replace.
    let text = String::from_utf8_lossy(&text).replace("uvm__subcmd__controller", "uvm__controller");
    write_line(text.trim_end())
}

/// The page of the whole, or one for each command in a folder.
pub(super) fn pages(folder: Option<&Path>, whole: clap::Command) -> Result<()> {
    let Some(folder) = folder else {
        let mut page = Vec::new();
        clap_mangen::Man::new(whole).render(&mut page).map_err(|error| Failure::output(&error))?;
        return write_line(String::from_utf8_lossy(&page).trim_end());
    };
    clap_mangen::generate_to(whole, folder)
        .map_err(|error| Failure::usage(format!("writing man pages into {}: {error}", folder.display())))?;
    print(&format!("man pages are in {}", folder.display()))
}
