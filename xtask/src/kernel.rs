//! Builds the appliance's kernel from Debian's source package and the fragments of `kernel-config`.

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::cache;
use crate::deps::{self, Need};

const SOURCE_PACKAGE: &str = "linux-source-6.12";
const SOURCE_ARCHIVE: &str = "/usr/src/linux-source-6.12.tar.xz";

/// Part of the cache's key: raise it when what this file does with the same input changes.
const BUILD_VERSION: &str = "1";

/// What the kernel would else take from the machine and the clock.
const FIXED_IDENTITY: [(&str, &str); 4] = [
    ("KBUILD_BUILD_TIMESTAMP", "2025-01-01 00:00:00 UTC"),
    ("KBUILD_BUILD_USER", "uvm"),
    ("KBUILD_BUILD_HOST", "uvm"),
    ("KBUILD_BUILD_VERSION", "1"),
];

const PROGRESS_EVERY: Duration = Duration::from_secs(5);
const LINES_OF_A_FAILURE: usize = 30;

const NEEDS: [Need; 10] = [
    need(SOURCE_ARCHIVE, SOURCE_PACKAGE, "build the appliance's kernel"),
    need("gcc", "gcc", "compile the kernel"),
    need("ld", "binutils", "link the kernel"),
    need("make", "make", "build the kernel"),
    need("flex", "flex", "read the kernel's configuration"),
    need("bison", "bison", "read the kernel's configuration"),
    need("bc", "bc", "generate the kernel's time constants"),
    need("/usr/include/libelf.h", "libelf-dev", "build objtool, which places the CPU mitigations"),
    need("xz", "xz-utils", "unpack the kernel's source"),
    need("zstd", "zstd", "compress the kernel"),
];

const fn need(probe: &'static str, package: &'static str, why: &'static str) -> Need {
    Need { probe, package, why }
}

/// A complete kernel in the cache.
pub(crate) struct Kernel {
    /// The stripped ELF image, for direct boot by PVH.
    pub(crate) vmlinux: PathBuf,
    /// The compressed image, for boot loaders, UEFI and Xen.
    pub(crate) bzimage: PathBuf,
}

/// Builds the kernel of the default fragments and the optional ones named in `with`, or finds it in the cache.
pub(crate) fn build(with: &[String]) -> Result<Kernel> {
    let fragments = Fragment::read_all(&crate::workspace_root().join("kernel-config"), with)?;
    deps::ensure(&NEEDS)?;
    let source = first_line("dpkg-query", &["-W", "-f", "${Version}", SOURCE_PACKAGE])?;
    let compiler = first_line("gcc", &["--version"])?;
    let linker = first_line("ld", &["--version"])?;
    let mut parts: Vec<&[u8]> =
        [BUILD_VERSION, &source, &compiler, &linker].iter().map(|part| part.as_bytes()).collect();
    for fragment in &fragments {
        parts.push(fragment.name.as_bytes());
        parts.push(fragment.text.as_bytes());
    }
    let folder = cache::entry("kernel", &cache::key(parts), |folder| {
        println!("kernel: building {SOURCE_PACKAGE} {source} with {} fragments", fragments.len());
        build_in(folder, &fragments)
    })?;
    Ok(Kernel { vmlinux: folder.join("vmlinux"), bzimage: folder.join("bzImage") })
}

fn build_in(folder: &Path, fragments: &[Fragment]) -> Result<()> {
    let started = Instant::now();
    let source = folder.join("source");
    // The objects lie inside the source, which makes the compiler see relative paths only: the result does not depend
    // on where the cache is.
    let objects = source.join("objects");
    println!("kernel: unpacking the source");
    fs::create_dir_all(&objects)?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--strip-components=1", "--file", SOURCE_ARCHIVE]);
    run(tar.arg("--directory").arg(&source))?;

    let config = folder.join("fragments.config");
    let lines: Vec<_> = fragments.iter().map(|fragment| fragment.text.as_str()).collect();
    fs::write(&config, lines.join("\n"))?;
    run(make(&source, folder)?.env("KCONFIG_ALLCONFIG", &config).arg("allnoconfig"))?;
    let taken = fs::read_to_string(objects.join(".config")).context("reading the kernel's configuration")?;
    let refused = refused(fragments, &taken);
    ensure!(refused.is_empty(), "the kernel refused lines of its configuration:\n{}", refused.join("\n"));

    let jobs = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    compile(make(&source, folder)?.args(["-j", &jobs, "bzImage"]), started)?;
    fs::rename(objects.join(".config"), folder.join("config"))?;
    fs::rename(objects.join("arch/x86/boot/bzImage"), folder.join("bzImage"))?;
    let mut strip = Command::new("strip");
    strip.args(["--strip-all", "--remove-section=.rela*", "-o"]).arg(folder.join("vmlinux"));
    run(strip.arg(objects.join("vmlinux")))?;
    fs::remove_dir_all(&source).context("removing the kernel's source")?;
    println!("kernel: done after {}", minutes(started.elapsed()));
    Ok(())
}

fn make(source: &Path, folder: &Path) -> Result<Command> {
    let mut make = Command::new("make");
    make.arg("--no-print-directory").arg("-C").arg(source).arg("O=objects").arg("ARCH=x86_64");
    make.envs(FIXED_IDENTITY).env("LC_ALL", "C").stdin(Stdio::null());
    // What cargo and the user set for other programs must not reach the kernel's build.
    for variable in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CFLAGS", "LDFLAGS", "KCFLAGS", "CROSS_COMPILE"] {
        make.env_remove(variable);
    }
    if deps::find_command("ccache").is_some() {
        make.args(["CC=ccache gcc", "HOSTCC=ccache gcc"]);
        make.env("CCACHE_DIR", cache::root()?.join("ccache")).env("CCACHE_BASEDIR", folder);
        make.env("CCACHE_NOHASHDIR", "1");
    }
    Ok(make)
}

/// Runs the compilation and prints a line every few seconds.
fn compile(command: &mut Command, started: Instant) -> Result<()> {
    // Errors go into the same pipe as make's own lines, so that the end of the output holds the cause.
    let (output, input) = std::io::pipe().context("making a pipe")?;
    command.stdout(input.try_clone()?).stderr(input);
    let mut child = command.spawn().context("starting make")?;
    // The command holds our copies of the writing end; while it does, the pipe does not end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut built = 0_u32;
    let mut last = VecDeque::new();
    let mut printed = Instant::now();
    for line in BufReader::new(output).lines() {
        let line = line.context("reading make's output")?;
        built += u32::from([" CC ", " AS "].iter().any(|step| line.get(1..5) == Some(step)));
        if printed.elapsed() >= PROGRESS_EVERY {
            printed = Instant::now();
            println!("kernel: {built} objects after {}", minutes(started.elapsed()));
        }
        if last.len() == LINES_OF_A_FAILURE {
            last.pop_front();
        }
        last.push_back(line);
    }
    if !child.wait().context("waiting for make")?.success() {
        bail!("the kernel's build failed:\n{}", last.make_contiguous().join("\n"));
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("starting {name}"))?;
    if !output.status.success() {
        bail!("{name} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn first_line(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).env("LC_ALL", "C").output();
    let output = output.with_context(|| format!("starting {program}"))?;
    ensure!(output.status.success(), "{program} {} failed ({})", arguments.join(" "), output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn minutes(time: Duration) -> String {
    format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
}

/// A named piece of the kernel's configuration.
#[derive(Debug)]
struct Fragment {
    name: String,
    text: String,
}

impl Fragment {
    /// The fragments of `default.list`, then the optional ones of `with`.
    fn read_all(folder: &Path, with: &[String]) -> Result<Vec<Self>> {
        let list = folder.join("default.list");
        let list = fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))?;
        let mut fragments = Vec::new();
        for name in list.split_whitespace() {
            fragments.push(Self::read(folder, name)?);
        }
        let optional = folder.join("optional");
        let with: HashSet<_> = with.iter().collect();
        // Sorted, so that the order of the options does not make another kernel.
        let mut with: Vec<_> = with.into_iter().collect();
        with.sort();
        for name in with {
            let known = name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-');
            if !known || !optional.join(format!("{name}.config")).is_file() {
                bail!("no optional fragment {name:?}; there are: {}", Self::names(&optional)?.join(", "));
            }
            fragments.push(Self::read(&optional, name)?);
        }
        Ok(fragments)
    }

    fn read(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(format!("{name}.config"));
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Self { name: name.to_owned(), text })
    }

    fn names(folder: &Path) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for item in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
            names.extend(item?.file_name().to_string_lossy().strip_suffix(".config").map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }
}

/// One line for each line of the fragments that the kernel did not take. Kconfig itself drops them silently.
fn refused(fragments: &[Fragment], taken: &str) -> Vec<String> {
    let taken: HashSet<&str> = taken.lines().collect();
    let holds = |line: &str| match line.strip_prefix("# ").and_then(|line| line.strip_suffix(" is not set")) {
        // An option that does not exist in this configuration is not set either.
        Some(symbol) => {
            !taken.iter().any(|other| other.strip_prefix(symbol).is_some_and(|o| o.starts_with('=')))
        }
        None => taken.contains(line),
    };
    let is_setting = |line: &str| {
        line.starts_with("CONFIG_") || (line.starts_with("# CONFIG_") && line.ends_with(" is not set"))
    };
    let mut refused = Vec::new();
    for fragment in fragments {
        for line in fragment.text.lines().map(str::trim_end) {
            if line.is_empty() || (line.starts_with('#') && !is_setting(line)) {
                continue;
            }
            if !is_setting(line) || !holds(line) {
                refused.push(format!("  {}: {line}", fragment.name));
            }
        }
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(text: &str) -> Vec<Fragment> {
        vec![Fragment { name: "f".to_owned(), text: text.to_owned() }]
    }

    #[test]
    fn a_dropped_line_is_refused() {
        let taken = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_NR=64\nCONFIG_D=y\n";
        let text = "# why\nCONFIG_A=y\nCONFIG_NR=64\n# CONFIG_B is not set\n# CONFIG_ABSENT is not set\n";
        assert!(refused(&fragment(text), taken).is_empty());
        for line in ["CONFIG_B=y", "CONFIG_NR=8", "CONFIG_C=y", "# CONFIG_D is not set", "CONFIG A=y"] {
            assert_eq!(refused(&fragment(line), taken), [format!("  f: {line}")]);
        }
    }

    #[test]
    fn every_fragment_says_why_and_the_options_are_found() {
        let folder = crate::workspace_root().join("kernel-config");
        let optional = Fragment::names(&folder.join("optional")).unwrap();
        let fragments = Fragment::read_all(&folder, &optional).unwrap();
        let listed = Fragment::names(&folder).unwrap().len() + optional.len();
        assert_eq!(fragments.len(), listed, "a fragment is neither in default.list nor optional");
        for fragment in fragments {
            let why = format!("# {}: ", fragment.name);
            assert!(fragment.text.starts_with(&why), "{} does not begin with {why:?}", fragment.name);
        }
        let error = Fragment::read_all(&folder, &["../core".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("xfs"), "{error}");
    }

    #[test]
    fn a_failing_build_shows_its_last_lines() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo '  CC      a.o'; echo cause >&2; exit 2"]);
        let error = compile(&mut command, Instant::now()).unwrap_err().to_string();
        assert!(error.ends_with("  CC      a.o\ncause"), "{error}");
    }
}
