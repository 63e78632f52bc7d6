//! Accounts: passwd(5), shadow(5), group(5), gshadow(5), subuid(5), sudoers(5) and `authorized_keys` (sshd(8)).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::lines::{append, fields_of, free_id, lines, map_line};
use super::{Guest, absolute, invalid};
use crate::error::{Error, ErrorKind, Result};
use crate::path::GuestPath;
use crate::tree::{
    Attributes, Kind, create_dir_all, resolve, resolve_parent, resolved_metadata, write_bytes,
};

const PASSWD: &str = "/etc/passwd";
const SHADOW: &str = "/etc/shadow";
const GROUP: &str = "/etc/group";
const GSHADOW: &str = "/etc/gshadow";
const SUDOERS: &str = "/etc/sudoers.d/90-uvm-users";
/// First id that useradd gives to a person.
const FIRST_ID: u32 = 1000;
/// Files of a skeleton home; there are five.
const MAX_SKELETON: usize = 1000;
const MAX_SKELETON_FILE: u64 = 1 << 20;

/// An account. One that exists keeps its ids, home and shell, and gets the keys, groups, sudo rule and password.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// Real name or comment.
    pub gecos: String,
    /// Supplementary groups; those missing are created.
    pub groups: Vec<String>,
    /// What follows the name in sudoers: `ALL=(ALL) NOPASSWD:ALL`.
    pub sudo: Option<String>,
    /// Login shell; bash where the guest has it, else sh.
    pub shell: Option<String>,
    /// Public keys, one line each, with options if wanted.
    pub ssh_authorized_keys: Vec<String>,
    /// User id; the next free one from 1000 on if not given.
    pub uid: Option<u32>,
    /// A crypt(5) hash; without one no password is right.
    pub password_hash: Option<String>,
}

/// What an account became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserOutcome {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Id of the primary group.
    pub gid: u32,
    /// Home directory.
    pub home: GuestPath,
    /// Whether the account is new.
    pub created: bool,
}

pub(super) fn validate(users: &[User]) -> Result<()> {
    for (index, user) in users.iter().enumerate() {
        if users[..index].iter().any(|other| other.name == user.name) {
            return Err(invalid("user", &user.name, "is named twice"));
        }
        validate_name("user", &user.name)?;
        user.groups.iter().try_for_each(|g| validate_name("group", g))?;
        validate_field("gecos", &user.gecos)?;
        if let Some(shell) = &user.shell {
            validate_field("shell", shell)?;
            if !shell.starts_with('/') || !shell.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(invalid("shell", shell, "is no absolute path"));
            }
        }
        let is_hash = |h: &str| h.starts_with('$') && h.bytes().all(|b| b.is_ascii_graphic() && b != b':');
        if user.password_hash.as_deref().is_some_and(|hash| !is_hash(hash)) {
            // The value itself stays out of the message.
            return Err(Error::new(ErrorKind::Invalid, "password_hash: not a crypt(5) hash ($id$...)"));
        }
        if user.uid.is_some_and(|uid| uid == 0 || uid >= u32::MAX - 1) {
            return Err(invalid(
                "uid",
                &user.uid.unwrap_or_default().to_string(),
                "cannot be given to a user",
            ));
        }
        if let Some(rule) = &user.sudo {
            let plain = rule.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
            if rule.trim().is_empty() || !plain || rule.contains(['\\', '#']) || !rule.contains('=') {
                return Err(invalid("sudo", rule, "is no rule (HOSTS=(USERS) COMMANDS)"));
            }
        }
        user.ssh_authorized_keys.iter().try_for_each(|key| validate_key(key))?;
    }
    Ok(())
}

/// The names useradd takes.
fn validate_name(field: &str, name: &str) -> Result<()> {
    let start = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    let rest = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
    if !start || !rest || name.len() > 32 {
        return Err(invalid(
            field,
            name,
            "is no name (a-z, 0-9, _ and -, at most 32, not starting with a digit)",
        ));
    }
    Ok(())
}

fn validate_field(field: &str, value: &str) -> Result<()> {
    if value.contains(':') || value.chars().any(char::is_control) {
        return Err(invalid(field, value, "holds a colon or a control character"));
    }
    Ok(())
}

/// One line that holds a key type and, after it, base64 that begins with the same type (RFC 4253 section 6.6).
fn validate_key(line: &str) -> Result<()> {
    let refused = |why: &str| Err(invalid("ssh_authorized_keys", line, why));
    if line.chars().any(char::is_control) || line.starts_with('#') {
        return refused("is not one line");
    }
    let mut words = line.split(' ').filter(|w| !w.is_empty());
    let is_type = |word: &&str| {
        ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-sha2-"].iter().any(|prefix| word.starts_with(prefix))
    };
    let Some(key_type) = words.find(is_type) else { return refused("names no type of a public key") };
    let blob = words.next().and_then(|blob| STANDARD.decode(blob).ok()).unwrap_or_default();
    let named = blob
        .split_first_chunk::<4>()
        .and_then(|(length, rest)| rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?));
    match named {
        Some((name, key)) if name == key_type.as_bytes() && key.len() >= 32 => Ok(()),
        _ => refused("holds no public key of the type it names"),
    }
}

/// What can only be refused with the guest at hand, before anything is written to it.
pub(super) fn check_guest(guest: &Guest<'_>, users: &[User]) -> Result<()> {
    let passwd = guest.read(PASSWD)?;
    let group = guest.read(GROUP)?;
    for user in users {
        let name = &user.name;
        let existing = fields_of(&passwd, name.as_bytes(), b':');
        if let Some(uid) = user.uid {
            let holder =
                lines(&passwd).find(|l| l.split(|b| *b == b':').nth(2) == Some(uid.to_string().as_bytes()));
            if holder.is_some_and(|l| l.split(|b| *b == b':').next() != Some(name.as_bytes())) {
                return Err(Error::new(ErrorKind::Exists, format!("user {name}: the uid {uid} is taken")));
            }
            if existing.is_some() && holder.is_none() {
                return Err(Error::new(
                    ErrorKind::Exists,
                    format!("user {name} exists with another uid than {uid}"),
                ));
            }
        }
        if existing.is_none() && fields_of(&group, name.as_bytes(), b':').is_some() {
            return Err(Error::new(ErrorKind::Exists, format!("user {name}: a group of that name exists")));
        }
        if let (Some(shell), None) = (&user.shell, &existing)
            && !guest.exists(shell)?
        {
            return Err(Error::new(
                ErrorKind::MissingPackage,
                format!("user {name}: the guest has no {shell}"),
            ));
        }
        if user.sudo.is_some() && !guest.exists("/usr/bin/sudo")? {
            let context = format!("user {name}: the guest has no /usr/bin/sudo (package sudo)");
            return Err(Error::new(ErrorKind::MissingPackage, context));
        }
    }
    Ok(())
}

pub(super) fn create(guest: &mut Guest<'_>, user: &User) -> Result<UserOutcome> {
    let passwd = guest.read(PASSWD)?;
    let outcome = match fields_of(&passwd, user.name.as_bytes(), b':') {
        Some(fields) => existing(user, &fields)?,
        None => add(guest, user, &passwd)?,
    };
    if let (false, Some(hash)) = (outcome.created, &user.password_hash) {
        guest.edit(SHADOW, 0o640, &mut |old| {
            Ok(map_line(old, user.name.as_bytes(), b':', &|line| replace_field(line, 1, hash.as_bytes())))
        })?;
    }
    for group in &user.groups {
        join_group(guest, group, &user.name)?;
    }
    if !user.ssh_authorized_keys.is_empty() {
        authorize_keys(guest, user, &outcome)?;
    }
    Ok(outcome)
}

fn existing(user: &User, fields: &[&[u8]]) -> Result<UserOutcome> {
    let malformed = || Error::new(ErrorKind::Corrupt, format!("the line of {} in /etc/passwd", user.name));
    let number = |index: usize| -> Option<u32> { std::str::from_utf8(fields.get(index)?).ok()?.parse().ok() };
    let home = fields.get(5).filter(|h| h.starts_with(b"/")).ok_or_else(malformed)?;
    Ok(UserOutcome {
        name: user.name.clone(),
        uid: number(2).ok_or_else(malformed)?,
        gid: number(3).ok_or_else(malformed)?,
        home: GuestPath::absolute(home)?,
        created: false,
    })
}

fn add(guest: &mut Guest<'_>, user: &User, passwd: &[u8]) -> Result<UserOutcome> {
    let no_id = || Error::new(ErrorKind::NoSpace, "no user or group id is free below 60000");
    let group = guest.read(GROUP)?;
    let uid = user.uid.or_else(|| free_id(passwd, 2, FIRST_ID)).ok_or_else(no_id)?;
    let gid = free_id(&group, 2, uid).filter(|gid| *gid == uid).or_else(|| free_id(&group, 2, FIRST_ID));
    let gid = gid.ok_or_else(no_id)?;
    let User { name, gecos, .. } = user;
    let shell = match &user.shell {
        Some(shell) => shell.as_str(),
        None if guest.exists("/bin/bash")? => "/bin/bash",
        None => "/bin/sh",
    };
    let append_to = |guest: &mut Guest<'_>, path: &str, mode: u32, line: String| {
        guest.edit(path, mode, &mut |old| Ok(append(old, line.as_bytes())))
    };
    append_to(guest, GROUP, 0o644, format!("{name}:x:{gid}:"))?;
    if guest.exists(GSHADOW)? {
        append_to(guest, GSHADOW, 0o640, format!("{name}:!::"))?;
    }
    append_to(guest, PASSWD, 0o644, format!("{name}:x:{uid}:{gid}:{gecos}:/home/{name}:{shell}"))?;
    // '*' fits no password and, unlike '!', does not lock the account against keys where sshd runs without PAM.
    let hash = user.password_hash.as_deref().unwrap_or("*");
    // Day 0 would demand a new password at the first login.
    let day = guest.timestamp.seconds / 86_400;
    let day = if day > 0 { day.to_string() } else { String::new() };
    append_to(guest, SHADOW, 0o640, format!("{name}:{hash}:{day}:0:99999:7:::"))?;
    for path in ["/etc/subuid", "/etc/subgid"] {
        if guest.exists(path)? {
            guest.edit(path, 0o644, &mut |old| {
                Ok(append(old, format!("{name}:{}:65536", next_subordinate(old)).as_bytes()))
            })?;
        }
    }
    let home = GuestPath::absolute(format!("/home/{name}"))?;
    make_home(guest, &home, uid, gid)?;
    Ok(UserOutcome { name: name.clone(), uid, gid, home, created: true })
}

/// The first id after all ranges given so far.
fn next_subordinate(file: &[u8]) -> u32 {
    let number = |field: Option<&[u8]>| -> Option<u32> { std::str::from_utf8(field?).ok()?.parse().ok() };
    lines(file)
        .filter_map(|line| {
            let mut fields = line.split(|b| *b == b':').skip(1);
            number(fields.next())?.checked_add(number(fields.next())?)
        })
        .fold(100_000, u32::max)
}

fn replace_field(line: &[u8], index: usize, value: &[u8]) -> Vec<u8> {
    let mut fields: Vec<&[u8]> = line.split(|b| *b == b':').collect();
    if let Some(field) = fields.get_mut(index) {
        *field = value;
    }
    fields.join(&b':')
}

/// Adds a member to a group, which is made where it is missing.
fn join_group(guest: &mut Guest<'_>, group: &str, member: &str) -> Result<()> {
    let file = guest.read(GROUP)?;
    if fields_of(&file, group.as_bytes(), b':').is_none() {
        let gid = free_id(&file, 2, FIRST_ID)
            .ok_or_else(|| Error::new(ErrorKind::NoSpace, "no group id is free below 60000"))?;
        guest.edit(GROUP, 0o644, &mut |old| Ok(append(old, format!("{group}:x:{gid}:").as_bytes())))?;
        if guest.exists(GSHADOW)? {
            guest.edit(GSHADOW, 0o640, &mut |old| Ok(append(old, format!("{group}:!::").as_bytes())))?;
        }
    }
    let add = |line: &[u8]| {
        let members = line.split(|b| *b == b':').nth(3).unwrap_or_default();
        if members.split(|b| *b == b',').any(|m| m == member.as_bytes()) {
            return line.to_vec();
        }
        let comma: &[u8] = if members.is_empty() { b"" } else { b"," };
        replace_field(line, 3, &[members, comma, member.as_bytes()].concat())
    };
    for (path, mode) in [(GROUP, 0o644), (GSHADOW, 0o640)] {
        if guest.exists(path)? {
            guest.edit(path, mode, &mut |old| Ok(map_line(old, group.as_bytes(), b':', &add)))?;
        }
    }
    Ok(())
}

/// A home directory filled from `/etc/skel`; one that is there already is left alone.
fn make_home(guest: &mut Guest<'_>, home: &GuestPath, uid: u32, gid: u32) -> Result<()> {
    if resolved_metadata(guest.tree, home)?.is_some() {
        return Ok(());
    }
    let above = guest.attributes(0o755);
    let home = resolve(guest.tree, home)?;
    if let Some(parent) = home.parent() {
        create_dir_all(guest.tree, &parent, above)?;
    }
    guest.tree.create_dir(&home, Attributes { mode: 0o700, uid, gid, ..above })?;
    let skeleton = resolve(guest.tree, &absolute("/etc/skel")?)?;
    let mut stack = match guest.tree.metadata(&skeleton)?.map(|m| m.kind) {
        Some(Kind::Directory) => vec![(skeleton, home)],
        _ => vec![],
    };
    let mut copied = 0;
    while let Some((from, to)) = stack.pop() {
        for (name, kind) in guest.tree.list(&from)? {
            copied += 1;
            if copied > MAX_SKELETON {
                return Err(Error::new(ErrorKind::TooLarge, "/etc/skel has too many entries"));
            }
            let (from, to) = (from.join(&name)?, to.join(&name)?);
            let Some(metadata) = guest.tree.metadata(&from)? else { continue };
            let attributes = Attributes { uid, gid, ..metadata.attributes };
            match kind {
                Kind::File { .. } => {
                    let contents = guest.tree.read(&from, MAX_SKELETON_FILE)?;
                    write_bytes(guest.tree, &to, attributes, &contents)?;
                }
                Kind::Directory => {
                    guest.tree.create_dir(&to, attributes)?;
                    stack.push((from, to));
                }
                Kind::Symlink => {
                    let target = guest.tree.read_link(&from)?;
                    guest.tree.symlink(&to, &target, attributes)?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Adds the keys that `~/.ssh/authorized_keys` does not have yet. sshd demands that nobody else can write there.
fn authorize_keys(guest: &mut Guest<'_>, user: &User, outcome: &UserOutcome) -> Result<()> {
    make_home(guest, &outcome.home, outcome.uid, outcome.gid)?;
    let owned = |mode| Attributes { mode, uid: outcome.uid, gid: outcome.gid, mtime: guest.timestamp };
    let (directory_attributes, file_attributes) = (owned(0o700), owned(0o600));
    let directory = resolve(guest.tree, &outcome.home.join(".ssh")?)?;
    match guest.tree.metadata(&directory)?.map(|m| m.kind) {
        Some(Kind::Directory) => guest.tree.set_attributes(&directory, directory_attributes)?,
        _ => guest.tree.create_dir(&directory, directory_attributes)?,
    }
    let path = resolve_parent(guest.tree, &directory.join("authorized_keys")?)?;
    let mut file = match guest.tree.metadata(&path)?.map(|m| m.kind) {
        Some(Kind::File { .. }) => guest.tree.read(&path, MAX_SKELETON_FILE)?,
        None => Vec::new(),
        Some(_) => return Err(Error::new(ErrorKind::WrongType, format!("{path} is no regular file"))),
    };
    for key in &user.ssh_authorized_keys {
        if !lines(&file).any(|line| line == key.as_bytes()) {
            file = append(&file, key.as_bytes());
        }
    }
    write_bytes(guest.tree, &path, file_attributes, &file)
}

/// One file for all rules: sudo passes over files whose names have a dot, so none is named after a user.
pub(super) fn write_sudoers(guest: &mut Guest<'_>, users: &[User]) -> Result<()> {
    let rules: Vec<String> = users
        .iter()
        .filter_map(|u| u.sudo.as_ref().map(|rule| format!("{} {}\n", u.name, rule.trim())))
        .collect();
    if rules.is_empty() {
        return Ok(());
    }
    guest.write(SUDOERS, 0o440, rules.concat().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUXSfPQ1mqUVaTEPZE4aVTLvW5lpHTzKtxGeyGLF me@there";

    #[test]
    fn a_key_is_one_line_and_a_key() {
        validate_key(KEY).unwrap();
        validate_key(&format!("no-pty,command=\"echo a b\" {KEY}")).unwrap();
        for bad in [
            "",
            "hello",
            "ssh-ed25519",
            "ssh-ed25519 AAAA",
            "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUXSfPQ1mqUVaTEPZE4aVTLvW5lpHTzKtxGeyGLF",
            &format!("{KEY}\nssh-rsa x"),
            &format!("#{KEY}"),
        ] {
            assert_eq!(validate_key(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn no_field_escapes_its_line() {
        let user = User { name: "ann".into(), ..User::default() };
        validate(std::slice::from_ref(&user)).unwrap();
        let bad = [
            User { name: "root:x:0".into(), ..user.clone() },
            User { name: "Ann".into(), ..user.clone() },
            User { name: "../x".into(), ..user.clone() },
            User { gecos: "a:b".into(), ..user.clone() },
            User { gecos: "a\nroot2:x:0:0".into(), ..user.clone() },
            User { groups: vec!["a,b".into()], ..user.clone() },
            User { shell: Some("sh".into()), ..user.clone() },
            User { shell: Some("/bin/sh\n".into()), ..user.clone() },
            User { sudo: Some("ALL=(ALL) ALL\nx ALL=ALL".into()), ..user.clone() },
            User { sudo: Some("ALL=(ALL) ALL \\".into()), ..user.clone() },
            User { password_hash: Some("plain".into()), ..user.clone() },
            User { password_hash: Some("$6$x:0".into()), ..user.clone() },
            User { uid: Some(0), ..user.clone() },
        ];
        for bad in bad {
            let error = validate(std::slice::from_ref(&bad)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{bad:?}");
        }
        assert!(validate(&[user.clone(), user]).is_err());
    }
}
