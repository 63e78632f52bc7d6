//! The one error of this crate.

use std::fmt;
use std::io;

/// What the kernel refused, stable enough to branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Somebody else holds it: mounted, locked, opened exclusively.
    Busy,
    /// The name, the device or the interface is not there.
    NotFound,
    /// The caller may not do this.
    PermissionDenied,
    /// The kernel or the device cannot do this.
    Unsupported,
    /// A request that can never be carried out.
    Invalid,
    /// What came from the kernel or the network is not what its format demands.
    Malformed,
    /// The deadline passed.
    TimedOut,
    /// The other side said no (a DHCPNAK).
    Refused,
    /// Messages were lost because they came faster than they were read.
    Overrun,
    /// A component of the path is a symbolic link.
    SymlinkInPath,
    /// The name is there already.
    Exists,
    /// The entry is of another type than the call needs.
    WrongType,
    /// The directory still has entries.
    NotEmpty,
    /// The file system has no room left.
    NoSpace,
    /// A limit on size or number is passed.
    TooLarge,
    /// Any other failure of a system call.
    Io,
}

/// `Display` says what was being done; the system's reason is in [`std::error::Error::source`].
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: io::Error,
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A system call failed while `context` was being done; the kind follows from its errno.
    pub fn io(context: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        Self { kind: kind_of(&source), context: context.into(), source }
    }

    /// An error of our own finding.
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: io::Error::other(reason.into()) }
    }

    /// The stable kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The reason, taken out.
    pub fn into_io(self) -> io::Error {
        self.source
    }
}

fn kind_of(source: &io::Error) -> ErrorKind {
    match source.kind() {
        io::ErrorKind::ResourceBusy | io::ErrorKind::WouldBlock => ErrorKind::Busy,
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::PermissionDenied,
        io::ErrorKind::Unsupported => ErrorKind::Unsupported,
        io::ErrorKind::InvalidInput => ErrorKind::Invalid,
        io::ErrorKind::InvalidData => ErrorKind::Malformed,
        io::ErrorKind::TimedOut => ErrorKind::TimedOut,
        io::ErrorKind::AlreadyExists => ErrorKind::Exists,
        io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => ErrorKind::WrongType,
        io::ErrorKind::DirectoryNotEmpty => ErrorKind::NotEmpty,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        _ => match source.raw_os_error() {
            Some(libc::ENODEV | libc::ENXIO) => ErrorKind::NotFound,
            Some(libc::EOPNOTSUPP | libc::ENOTTY) => ErrorKind::Unsupported,
            Some(libc::ENOBUFS) => ErrorKind::Overrun,
            Some(libc::ELOOP) => ErrorKind::SymlinkInPath,
            // What ext4 says of damage (EFSCORRUPTED, EFSBADCRC).
            Some(libc::EUCLEAN | libc::EBADMSG) => ErrorKind::Malformed,
            _ => ErrorKind::Io,
        },
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_follows_from_the_errno() {
        for (errno, kind) in [
            (libc::EBUSY, ErrorKind::Busy),
            (libc::EWOULDBLOCK, ErrorKind::Busy),
            (libc::ENOENT, ErrorKind::NotFound),
            (libc::ENXIO, ErrorKind::NotFound),
            (libc::EROFS, ErrorKind::PermissionDenied),
            (libc::EOPNOTSUPP, ErrorKind::Unsupported),
            (libc::ENOBUFS, ErrorKind::Overrun),
            (libc::ELOOP, ErrorKind::SymlinkInPath),
            (libc::EEXIST, ErrorKind::Exists),
            (libc::ENOTDIR, ErrorKind::WrongType),
            (libc::ENOTEMPTY, ErrorKind::NotEmpty),
            (libc::ENOSPC, ErrorKind::NoSpace),
            (libc::EIO, ErrorKind::Io),
        ] {
            assert_eq!(Error::io("x", io::Error::from_raw_os_error(errno)).kind(), kind, "errno {errno}");
        }
    }
}
