//! Configuration: a file, the environment, flags; each wins over the one before it.
//!
//! The three say the same things in the same words: `poll_interval = "5s"` in the file (TOML),
//! `UVM_CONTROLLER_POLL_INTERVAL=5s` in the environment, `--poll-interval 5s` as a flag. What is not known is refused by
//! name. One file serves the controller and its clients, each of which reads its own part of it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

/// What names of environment variables begin with.
const PREFIX: &str = "UVM_CONTROLLER_";
/// Name of the variable that names the file.
const FILE_VARIABLE: &str = "UVM_CONTROLLER_CONFIG";
/// The file that is read where none is named.
const FILE: &str = "/etc/uvm-controller/config.toml";
/// Largest file that is read.
const MAX_FILE: u64 = 1 << 20;
/// Where the API is, unless something else is said.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8440);
/// The controller's own machine as QEMU's user network shows it to its guests.
const HOST_OF_USER_NETWORK: &str = "10.0.2.2";
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Bounds of the poll interval.
const POLL_INTERVALS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3_600);
/// Where the appliance is, in the state folder.
const APPLIANCE: &str = "appliance";

/// Name of the operator's token in the state folder: made at the first start.
pub const OPERATOR_TOKEN_FILE: &str = "operator.token";
/// Name of the file in the state folder that says where the API is.
pub const URL_FILE: &str = "url";
/// Name of the authority's certificate in the state folder.
pub const CA_FILE: &str = crate::ca::CERTIFICATE_FILE;

/// What is wrong with the configuration.
#[derive(Debug)]
pub struct Error {
    /// What was being read, or what is wrong.
    pub context: String,
    /// Why.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    fn new(context: impl Into<String>) -> Self {
        Self { context: context.into(), source: None }
    }

    fn because(
        context: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { context: context.into(), source: Some(source.into()) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

/// Result of reading the configuration.
pub type Result<T> = std::result::Result<T, Error>;

/// How commands print what they found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Everything that may be said, in a file or in the environment.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    state: Option<PathBuf>,
    listen: Option<SocketAddr>,
    metrics_listen: Option<SocketAddr>,
    #[serde(default, deserialize_with = "list")]
    names: Option<Vec<String>>,
    kernel: Option<PathBuf>,
    initramfs: Option<PathBuf>,
    uvm_url: Option<String>,
    #[serde(default, deserialize_with = "duration")]
    poll_interval: Option<Duration>,
    url: Option<String>,
    token: Option<Hidden>,
    token_file: Option<PathBuf>,
    ca: Option<PathBuf>,
    output: Option<Output>,
}

/// Says nothing when it is printed.
#[derive(Clone, PartialEq)]
struct Hidden(Zeroizing<String>);

impl<'de> Deserialize<'de> for Hidden {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(…)")
    }
}

/// A list, or words with commas between them, as the environment has them.
fn list<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Words(String),
        List(Vec<String>),
    }
    Ok(Some(match Either::deserialize(deserializer)? {
        Either::List(list) => list,
        Either::Words(words) => {
            words.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
        }
    }))
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map(Some).map_err(serde::de::Error::custom)
}

fn parse_duration(text: &str) -> std::result::Result<Duration, String> {
    let found = humantime::parse_duration(text).map_err(|error| format!("{text:?} is no time: {error}"))?;
    match POLL_INTERVALS.contains(&found) {
        true => Ok(found),
        false => Err(format!("{text:?} is to be between 100ms and 1h")),
    }
}

impl Settings {
    /// What `self` does not say, `weaker` says.
    fn over(self, weaker: Self) -> Self {
        Self {
            state: self.state.or(weaker.state),
            listen: self.listen.or(weaker.listen),
            metrics_listen: self.metrics_listen.or(weaker.metrics_listen),
            names: self.names.or(weaker.names),
            kernel: self.kernel.or(weaker.kernel),
            initramfs: self.initramfs.or(weaker.initramfs),
            uvm_url: self.uvm_url.or(weaker.uvm_url),
            poll_interval: self.poll_interval.or(weaker.poll_interval),
            url: self.url.or(weaker.url),
            token: self.token.or(weaker.token),
            token_file: self.token_file.or(weaker.token_file),
            ca: self.ca.or(weaker.ca),
            output: self.output.or(weaker.output),
        }
    }
}

/// The environment, as the process was given it.
pub type Environment = BTreeMap<String, String>;

/// The environment of this process; what is not UTF-8 is none of ours.
pub fn environment() -> Environment {
    let known = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    known.filter_map(|(name, value)| Some((name, value.into_string().ok()?))).collect()
}

/// The flag that every command has.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct FileFlag {
    /// Configuration file (TOML); /etc/uvm-controller/config.toml where it is there.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
}

/// Flags of `serve`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ServeFlags {
    /// Folder of everything the controller keeps.
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Address and port of the API [default: 127.0.0.1:8440].
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Address and port for /metrics in plain HTTP and without a token; there is none where it is missing.
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,
    /// A name or address by which the API is reached, for its certificate; may be given several times.
    #[arg(long = "name", value_name = "NAME")]
    pub names: Vec<String>,
    /// Kernel of the appliance [default: appliance/vmlinux in the state folder].
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial file system of the appliance [default: appliance/initramfs in the state folder].
    #[arg(long, value_name = "FILE")]
    pub initramfs: Option<PathBuf>,
    /// The API as utility VMs reach it [default: https://10.0.2.2 with the API's port].
    #[arg(long, value_name = "URL")]
    pub uvm_url: Option<String>,
    /// Time between two looks at a node [default: 5s].
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub poll_interval: Option<Duration>,
}

/// Flags of the commands that call the API. A token is no flag: other users of the machine see those.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ClientFlags {
    /// The API [default: what `serve` left in the state folder].
    #[arg(long, value_name = "URL", global = true)]
    pub url: Option<String>,
    /// File with the token [default: the operator's token in the state folder].
    #[arg(long, value_name = "FILE", global = true)]
    pub token_file: Option<PathBuf>,
    /// Certificate authority of the API, PEM [default: the one in the state folder].
    #[arg(long, value_name = "FILE", global = true)]
    pub ca: Option<PathBuf>,
    /// State folder of a controller on this machine.
    #[arg(long, value_name = "DIR", global = true)]
    pub state: Option<PathBuf>,
    /// How to print what was found.
    #[arg(long, value_enum, value_name = "FORM", global = true)]
    pub output: Option<Output>,
}

/// How to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeConfig {
    /// Folder of everything the controller keeps.
    pub state: PathBuf,
    /// Address and port of the API.
    pub listen: SocketAddr,
    /// Address and port for metrics alone.
    pub metrics_listen: Option<SocketAddr>,
    /// Names and addresses for the certificate, beside those that always are in it.
    pub names: Vec<String>,
    /// Kernel of the appliance.
    pub kernel: PathBuf,
    /// Initial file system of the appliance.
    pub initramfs: PathBuf,
    /// The API as utility VMs reach it, where it was said.
    pub uvm_url: Option<String>,
    /// Time between two looks at a node.
    pub poll_interval: Duration,
}

impl ServeConfig {
    /// Reads the file and the environment, and lets the flags win.
    ///
    /// # Errors
    /// Where something cannot be read, is not known, or makes no sense.
    pub fn load(file: &FileFlag, flags: ServeFlags, environment: &Environment) -> Result<Self> {
        let flags = Settings {
            state: flags.state,
            listen: flags.listen,
            metrics_listen: flags.metrics_listen,
            names: Some(flags.names).filter(|names| !names.is_empty()),
            kernel: flags.kernel,
            initramfs: flags.initramfs,
            uvm_url: flags.uvm_url,
            poll_interval: flags.poll_interval,
            ..Settings::default()
        };
        let settings = flags.over(settings(file, environment)?);
        let state = state_folder(settings.state, environment)?;
        let appliance = state.join(APPLIANCE);
        if let Some(url) = &settings.uvm_url {
            check_url("uvm_url", url)?;
        }
        Ok(Self {
            listen: settings.listen.unwrap_or(LISTEN),
            metrics_listen: settings.metrics_listen,
            names: settings.names.unwrap_or_default(),
            kernel: settings.kernel.unwrap_or_else(|| appliance.join("vmlinux")),
            initramfs: settings.initramfs.unwrap_or_else(|| appliance.join("initramfs")),
            uvm_url: settings.uvm_url,
            poll_interval: settings.poll_interval.unwrap_or(POLL_INTERVAL),
            state,
        })
    }

    /// Names and addresses by which the API is reached: what was said, what it listens on, this machine as utility VMs
    /// see it.
    pub fn certificate_names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            ["localhost", "127.0.0.1", "::1", HOST_OF_USER_NETWORK].map(str::to_owned).into();
        if !self.listen.ip().is_unspecified() {
            names.push(self.listen.ip().to_string());
        }
        names.extend(self.uvm_url.as_deref().and_then(host_of).map(str::to_owned));
        names.extend(self.names.iter().cloned());
        names.sort();
        names.dedup();
        names
    }

    /// The API as utility VMs reach it, once its port is known.
    pub fn url_for_utility_vms(&self, port: u16) -> String {
        self.uvm_url.clone().unwrap_or_else(|| format!("https://{HOST_OF_USER_NETWORK}:{port}"))
    }
}

/// How to call the API.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientConfig {
    /// The API, without a slash at its end.
    pub url: String,
    /// Certificate authority to trust, PEM; the public ones where it is `None`.
    pub ca: Option<String>,
    /// How to print.
    pub output: Output,
    token: Hidden,
}

impl ClientConfig {
    /// Reads the file and the environment, lets the flags win, and takes the rest from the state folder of a controller
    /// on this machine.
    ///
    /// # Errors
    /// Where something cannot be read, is not known, makes no sense, or is nowhere.
    pub fn load(file: &FileFlag, flags: ClientFlags, environment: &Environment) -> Result<Self> {
        let flags = Settings {
            state: flags.state,
            url: flags.url,
            token_file: flags.token_file,
            ca: flags.ca,
            output: flags.output,
            ..Settings::default()
        };
        // A file named by a flag wins over a token said elsewhere.
        let file_was_named = flags.token_file.is_some();
        let settings = flags.over(settings(file, environment)?);
        let state = state_folder(settings.state, environment)?;
        let local = settings.url.is_none();
        let url = match settings.url {
            Some(url) => url,
            None => read(&state.join(URL_FILE)).map_err(|error| {
                Error::because("no url was given, and there is no controller here", error)
            })?,
        };
        let url = url.trim().trim_end_matches('/').to_owned();
        check_url("url", &url)?;
        let token = match (settings.token, settings.token_file) {
            (Some(token), _) if !file_was_named => token,
            (_, Some(path)) => secret(&path)?,
            (Some(token), None) => token,
            (None, None) => secret(&state.join(OPERATOR_TOKEN_FILE))?,
        };
        let ca = match settings.ca {
            Some(path) => Some(read(&path)?),
            None if local => Some(read(&state.join(CA_FILE))?),
            // Another machine's controller: its authority where we have one, else the public ones.
            None => read(&state.join(CA_FILE)).ok(),
        };
        Ok(Self { url, ca, output: settings.output.unwrap_or_default(), token })
    }

    /// The token's secret, for the header that sends it.
    pub fn token(&self) -> &str {
        &self.token.0
    }
}

fn secret(path: &Path) -> Result<Hidden> {
    read(path).map(|text| Hidden(Zeroizing::new(text.trim().to_owned())))
}

fn check_url(key: &str, url: &str) -> Result<()> {
    match host_of(url) {
        Some(host) if !host.is_empty() => Ok(()),
        _ => {
            Err(Error::new(format!("{key} is {url:?}; it is to be https:// with a host, and a port perhaps")))
        }
    }
}

/// The host of an HTTPS URL; an IPv6 address without its brackets.
fn host_of(url: &str) -> Option<&str> {
    let authority = url.strip_prefix("https://")?.split(['/', '?', '#']).next()?;
    if authority.contains('@') {
        return None;
    }
    match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map(|(host, _)| host),
        None => authority.split(':').next(),
    }
}

fn read(path: &Path) -> Result<String> {
    let context = || format!("reading {}", path.display());
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| Error::because(context(), error))?;
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|error| Error::because(context(), error))?;
    match text.len() as u64 > MAX_FILE {
        true => Err(Error::new(format!("{} is larger than {MAX_FILE} bytes", path.display()))),
        false => Ok(text),
    }
}

/// The environment over the file.
fn settings(file: &FileFlag, environment: &Environment) -> Result<Settings> {
    let named = file.config.clone().or_else(|| environment.get(FILE_VARIABLE).map(PathBuf::from));
    let text = match &named {
        Some(path) => read(path)?,
        None => match std::fs::exists(FILE) {
            Ok(true) => read(Path::new(FILE))?,
            _ => String::new(),
        },
    };
    let shown = named.unwrap_or_else(|| PathBuf::from(FILE));
    let from_file: Settings = toml::from_str(&text).map_err(|error| {
        // Not the excerpt that the library shows: a token may stand in it.
        let place =
            error.span().map(|span| text.get(..span.start).unwrap_or_default().matches('\n').count() + 1);
        let line = place.map(|line| format!(", line {line}")).unwrap_or_default();
        Error::new(format!("{}{line}: {}", shown.display(), error.message()))
    })?;
    Ok(from_environment(environment)?.over(from_file))
}

fn from_environment(environment: &Environment) -> Result<Settings> {
    let mut said = toml::Table::new();
    for (name, value) in environment {
        if let Some(key) = name.strip_prefix(PREFIX).filter(|_| name != FILE_VARIABLE) {
            said.insert(key.to_ascii_lowercase(), toml::Value::String(value.clone()));
        }
    }
    said.try_into().map_err(|error: toml::de::Error| {
        Error::new(format!("the environment ({PREFIX}…): {}", error.message()))
    })
}

/// `/var/lib/uvm-controller` for root; else where the user keeps state.
fn state_folder(said: Option<PathBuf>, environment: &Environment) -> Result<PathBuf> {
    if let Some(folder) = said {
        return Ok(folder);
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/uvm-controller"));
    }
    users_state_folder(environment)
}

fn users_state_folder(environment: &Environment) -> Result<PathBuf> {
    let absolute = |name: &str| environment.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")));
    let state =
        state.ok_or_else(|| Error::new("there is no HOME: say where the state folder is (--state)"))?;
    Ok(state.join("uvm-controller"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn file(folder: &Path, text: &str) -> FileFlag {
        let path = folder.join("config.toml");
        std::fs::write(&path, text).unwrap();
        FileFlag { config: Some(path) }
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(
            folder.path(),
            "state = '/f'\nlisten = '127.0.0.1:1'\npoll_interval = '1s'\nnames = ['a', 'b']\nurl = 'https://h'",
        );
        let environment = environment(&[
            ("UVM_CONTROLLER_LISTEN", "127.0.0.1:2"),
            ("UVM_CONTROLLER_POLL_INTERVAL", "2s"),
            ("UVM_CONTROLLER_NAMES", "c, d"),
            ("OTHER", "x"),
        ]);
        let flags = ServeFlags { poll_interval: Some(Duration::from_secs(3)), ..ServeFlags::default() };
        let config = ServeConfig::load(&file, flags, &environment).unwrap();
        assert_eq!(config.state, Path::new("/f"));
        assert_eq!(config.listen.port(), 2);
        assert_eq!(config.poll_interval, Duration::from_secs(3));
        assert_eq!(config.names, ["c", "d"]);
        assert_eq!(config.kernel, Path::new("/f/appliance/vmlinux"));
        assert_eq!(config.url_for_utility_vms(7), "https://10.0.2.2:7");
    }

    #[test]
    fn the_file_is_named_by_the_flag_or_by_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let by_flag = file(folder.path(), "state = '/flag'");
        let other = folder.path().join("other.toml");
        std::fs::write(&other, "state = '/variable'").unwrap();
        let environment = environment(&[(FILE_VARIABLE, other.to_str().unwrap())]);
        let state =
            |flag: &FileFlag| ServeConfig::load(flag, ServeFlags::default(), &environment).unwrap().state;
        assert_eq!(state(&by_flag), Path::new("/flag"));
        assert_eq!(state(&FileFlag::default()), Path::new("/variable"));
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let load = |file: &FileFlag, environment: &Environment| {
            ServeConfig::load(file, ServeFlags::default(), environment).unwrap_err().to_string()
        };
        let error = load(&file(folder.path(), "\n\nlissen = 1"), &environment(&[]));
        assert!(error.contains("lissen") && error.contains("line 3"), "{error}");
        let good = file(folder.path(), "");
        let error = load(&good, &environment(&[("UVM_CONTROLLER_LISSEN", "1")]));
        assert!(error.contains("lissen"), "{error}");
        for (name, value) in [
            ("UVM_CONTROLLER_LISTEN", "nowhere"),
            ("UVM_CONTROLLER_POLL_INTERVAL", "1ms"),
            ("UVM_CONTROLLER_UVM_URL", "http://h"),
            ("UVM_CONTROLLER_UVM_URL", "https://user@h"),
            ("UVM_CONTROLLER_OUTPUT", "yaml"),
        ] {
            load(&good, &environment(&[("UVM_CONTROLLER_STATE", "/s"), (name, value)]));
        }
        let missing = FileFlag { config: Some(folder.path().join("none.toml")) };
        assert!(load(&missing, &environment(&[])).contains("none.toml"));
    }

    #[test]
    fn no_token_is_shown_where_the_file_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path(), "token = 'SECRET' x");
        let error = ServeConfig::load(&file, ServeFlags::default(), &environment(&[])).unwrap_err();
        assert!(!format!("{error:?}").contains("SECRET"), "{error:?}");
    }

    #[test]
    fn a_client_finds_what_serve_left() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write(URL_FILE, "https://127.0.0.1:9\n");
        write(CA_FILE, "PEM");
        write(OPERATOR_TOKEN_FILE, "uvm_x\n");
        write("mine", "uvm_file");
        let none = file(folder.path(), "");
        let state = ("UVM_CONTROLLER_STATE", folder.path().to_str().unwrap());
        let load = |flags, pairs: &[(&str, &str)]| ClientConfig::load(&none, flags, &environment(pairs));
        let local = load(ClientFlags::default(), &[state]).unwrap();
        assert_eq!(
            (local.url.as_str(), local.ca.as_deref(), local.token()),
            ("https://127.0.0.1:9", Some("PEM"), "uvm_x")
        );
        assert!(!format!("{local:?}").contains("uvm_x"));
        let said = [state, ("UVM_CONTROLLER_TOKEN", "uvm_y"), ("UVM_CONTROLLER_URL", "https://h:1/")];
        let remote = load(ClientFlags::default(), &said).unwrap();
        assert_eq!((remote.url.as_str(), remote.token()), ("https://h:1", "uvm_y"));
        let flags = ClientFlags { token_file: Some(folder.path().join("mine")), ..ClientFlags::default() };
        assert_eq!(load(flags, &said).unwrap().token(), "uvm_file");
        let error = load(ClientFlags::default(), &[("UVM_CONTROLLER_STATE", "/nowhere")]).unwrap_err();
        assert!(error.to_string().contains("no url"), "{error}");
    }

    #[test]
    fn the_users_own_folder_is_by_the_desktop_standard() {
        let of = |pairs: &[(&str, &str)]| users_state_folder(&environment(pairs)).ok();
        assert_eq!(of(&[("HOME", "/h")]), Some(PathBuf::from("/h/.local/state/uvm-controller")));
        assert_eq!(of(&[("HOME", "/h"), ("XDG_STATE_HOME", "/x")]), Some(PathBuf::from("/x/uvm-controller")));
        assert_eq!(of(&[("HOME", "relative")]), None);
    }

    #[test]
    fn the_certificate_has_every_name_once() {
        let file = FileFlag { config: Some(PathBuf::from("/dev/null")) };
        let flags = ServeFlags {
            state: Some(PathBuf::from("/s")),
            listen: Some("192.0.2.7:0".parse().unwrap()),
            uvm_url: Some("https://[2001:db8::1]:8440".to_owned()),
            names: vec!["controller.example".to_owned(), "localhost".to_owned()],
            ..ServeFlags::default()
        };
        let names = ServeConfig::load(&file, flags, &environment(&[])).unwrap().certificate_names();
        assert_eq!(
            names,
            ["10.0.2.2", "127.0.0.1", "192.0.2.7", "2001:db8::1", "::1", "controller.example", "localhost"]
        );
    }
}
