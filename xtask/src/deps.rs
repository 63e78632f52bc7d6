//! Installs the packages a command needs, after saying which and why.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Something a command of ours needs from the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// What must be there: a path if it starts with `/`, else a command.
    pub(crate) probe: &'static str,
    /// The Debian package that brings it.
    pub(crate) package: &'static str,
    /// What we do with it, as the end of the sentence "needed to ...".
    pub(crate) why: &'static str,
}

/// Whether the process has root's rights.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The path of a command, as a shell would find it, or in the folders of system commands.
pub(crate) fn find_command(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Makes sure that everything in `needs` is there. Prints nothing if it is.
///
/// # Errors
/// One line naming the packages where this user may not install them; apt's own words where apt fails.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let packages = missing(needs);
    if packages.is_empty() {
        return Ok(());
    }
    let Some(apt) = Apt::find() else {
        let names: Vec<_> = packages.iter().map(|need| need.package).collect();
        bail!("these packages are missing and this user may not install them: {}", names.join(" "));
    };
    println!("Installing what is missing, with apt-get:");
    for need in &packages {
        println!("  {:<24} needed to {}", need.package, need.why);
    }
    apt.install(&packages.iter().map(|need| need.package.to_owned()).collect::<Vec<_>>())?;
    match missing(needs).first() {
        None => Ok(()),
        Some(need) => bail!("the package {} is installed, yet {} is not there", need.package, need.probe),
    }
}

/// The needs that are not met, one for each package.
fn missing(needs: &[Need]) -> Vec<Need> {
    let mut missing: Vec<Need> = Vec::new();
    for need in needs {
        let there = match need.probe.strip_prefix('/') {
            Some(_) => Path::new(need.probe).exists(),
            None => find_command(need.probe).is_some(),
        };
        if !there && missing.iter().all(|other| other.package != need.package) {
            missing.push(*need);
        }
    }
    missing
}

struct Apt {
    sudo: bool,
}

impl Apt {
    /// None where this user may not install packages.
    fn find() -> Option<Self> {
        find_command("apt-get")?;
        if is_root() {
            return Some(Self { sudo: false });
        }
        let sudo = Command::new("sudo").args(["-n", "true"]).stderr(Stdio::null()).status();
        sudo.is_ok_and(|status| status.success()).then_some(Self { sudo: true })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(if self.sudo { "sudo" } else { "env" });
        if self.sudo {
            command.args(["-n", "env"]);
        }
        command.args(["DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "apt-get", "-q"]);
        command.stdin(Stdio::null());
        command
    }

    fn install(&self, packages: &[String]) -> Result<()> {
        let mut updated = false;
        let request = match self.solvable(packages)? {
            Some(request) => request,
            None => {
                self.update()?;
                updated = true;
                match self.solvable(packages)? {
                    Some(request) => request,
                    None => {
                        bail!("apt-get cannot install {}: {}", packages.join(" "), self.refusal(packages)?)
                    }
                }
            }
        };
        if self.try_install(&request)? {
            return Ok(());
        }
        // Old package lists name files that the archive no longer has.
        if !updated {
            self.update()?;
            if self.try_install(&request)? {
                return Ok(());
            }
        }
        bail!("apt-get could not install {}", packages.join(" "))
    }

    /// The arguments with which apt has a solution, if any.
    fn solvable(&self, packages: &[String]) -> Result<Option<Vec<String>>> {
        for request in requests(packages, &codename()) {
            if self.simulate(&request)?.status.success() {
                return Ok(Some(request));
            }
        }
        Ok(None)
    }

    fn simulate(&self, request: &[String]) -> Result<Output> {
        let mut command = self.command();
        command.args(["install", "--simulate", "--no-install-recommends"]).args(request);
        command.output().context("running apt-get")
    }

    fn refusal(&self, packages: &[String]) -> Result<String> {
        let output = self.simulate(packages)?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("E:")).collect();
        Ok(if lines.is_empty() { text.trim().to_owned() } else { lines.join("; ") })
    }

    fn update(&self) -> Result<()> {
        println!("Updating the package lists (apt-get update)");
        // A failing third-party source must not stop us: the simulation that follows tells whether it matters.
        self.command().arg("update").stdout(Stdio::null()).status().context("running apt-get")?;
        Ok(())
    }

    fn try_install(&self, request: &[String]) -> Result<bool> {
        let mut command = self.command();
        command.args(["install", "-y", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0"]).args(request);
        let status = command.stdout(Stdio::null()).status().context("running apt-get")?;
        Ok(status.success())
    }
}

/// The requests to try, in this order. Some machines come with a qemu-utils of another suite, which the emulators of
/// their own suite conflict with; then both must be asked for together.
fn requests(packages: &[String], codename: &str) -> Vec<Vec<String>> {
    let mut requests = vec![packages.to_vec()];
    if !codename.is_empty() && packages.iter().any(|package| package.starts_with("qemu-")) {
        let mut request: Vec<_> = packages.iter().filter(|name| *name != "qemu-utils").cloned().collect();
        request.extend([format!("qemu-utils/{codename}"), "--allow-downgrades".to_owned()]);
        requests.push(request);
    }
    requests
}

fn codename() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    value.unwrap_or_default().trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_not_asked_for() {
        let need = |probe, package| Need { probe, package, why: "test" };
        let needs = [
            need("sh", "dash"),
            need("/proc/self", "kernel"),
            need("no-such-command-1", "one"),
            need("no-such-command-2", "one"),
            need("/no/such/file", "two"),
        ];
        let packages: Vec<_> = missing(&needs).iter().map(|need| need.package).collect();
        assert_eq!(packages, ["one", "two"]);
    }

    #[test]
    fn qemu_is_asked_for_with_its_own_suites_tools() {
        let packages = ["ovmf".to_owned(), "qemu-utils".to_owned(), "qemu-system-x86".to_owned()];
        let requests = requests(&packages, "bookworm");
        assert_eq!(requests[0], packages);
        assert_eq!(requests[1], ["ovmf", "qemu-system-x86", "qemu-utils/bookworm", "--allow-downgrades"]);
        assert_eq!(super::requests(&["ovmf".to_owned()], "bookworm").len(), 1);
    }
}
