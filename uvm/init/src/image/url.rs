//! The few things we need of a URL (RFC 3986): an http or https address without userinfo, resolving a
//! redirect against it, and a form that may be shown.

use std::fmt;

use super::error::{ImageError, ImageErrorKind, Result};

/// A user name and a password. No `Debug`: it is never shown.
#[derive(Clone)]
pub(super) struct Credentials {
    user: String,
    password: String,
}

impl Credentials {
    /// The value of an `Authorization` header (RFC 7617).
    pub(super) fn basic(&self) -> String {
        use base64::Engine as _;
        let pair = format!("{}:{}", self.user, self.password);
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
    }
}

/// An absolute http or https URL without userinfo and fragment.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Url {
    https: bool,
    authority: String,
    /// Starts with `/`, or is empty; carries the query.
    path: String,
}

impl Url {
    /// Parses a URL and takes the userinfo out of it.
    pub(super) fn parse(text: &str) -> Result<(Self, Option<Credentials>)> {
        let shown = without_secrets(text);
        let malformed =
            |why: &str| ImageError::new(ImageErrorKind::Malformed, format!("URL {shown:?}: {why}"));
        let (scheme, rest) = text.split_once("://").ok_or_else(|| malformed("it has no scheme"))?;
        let https = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => {
                let context = format!("URL {shown:?}: scheme {scheme:?} is not http or https");
                return Err(ImageError::new(ImageErrorKind::Unsupported, context));
            }
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let path = path.split('#').next().unwrap_or_default();
        let (userinfo, authority) = match authority.rsplit_once('@') {
            Some((userinfo, authority)) => (Some(userinfo), authority),
            None => (None, authority),
        };
        if authority.is_empty() {
            return Err(malformed("it has no host"));
        }
        let path = if path.starts_with('?') { format!("/{path}") } else { path.to_owned() };
        let url = Self { https, authority: authority.to_ascii_lowercase(), path };
        if url.to_string().parse::<ureq::http::Uri>().is_err() {
            return Err(malformed("it holds characters that a URL cannot have"));
        }
        Ok((url, userinfo.map(credentials)))
    }

    /// This URL with more path after it.
    pub(super) fn append(&self, path: &str) -> Self {
        Self { path: format!("{}/{path}", self.path.trim_end_matches('/')), ..self.clone() }
    }

    /// This URL with more query parameters.
    pub(super) fn with_query(&self, parameters: &[(&str, &str)]) -> Self {
        let mut path = self.path.clone();
        for (name, value) in parameters {
            path.push(if path.contains('?') { '&' } else { '?' });
            path.push_str(&format!("{name}={}", percent_encode(value)));
        }
        Self { path, ..self.clone() }
    }

    /// Where a `Location` header leads, seen from here.
    pub(super) fn join(&self, location: &str) -> Result<Self> {
        let scheme = if self.https { "https" } else { "http" };
        let head = location.split(['/', '?', '#']).next().unwrap_or_default();
        let absolute = if head.ends_with(':') {
            location.to_owned()
        } else if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.starts_with('/') {
            format!("{scheme}://{}{location}", self.authority)
        } else {
            let path = self.path.split('?').next().unwrap_or_default();
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{scheme}://{}{folder}/{location}", self.authority)
        };
        Ok(Self::parse(&absolute)?.0)
    }

    /// Whether the path between here and the server is protected.
    pub(super) fn is_https(&self) -> bool {
        self.https
    }

    /// Whether it carries a query, which a base to append to cannot.
    pub(super) fn has_query(&self) -> bool {
        self.path.contains('?')
    }

    /// Scheme, host and port: what credentials belong to.
    pub(super) fn origin(&self) -> String {
        let (scheme, default_port) = if self.https { ("https", ":443") } else { ("http", ":80") };
        format!("{scheme}://{}", self.authority.strip_suffix(default_port).unwrap_or(&self.authority))
    }

    /// The host without its port.
    pub(super) fn host(&self) -> &str {
        match self.authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => &self.authority,
        }
    }

    /// The URL for messages: a redirect to object storage carries its secret in the query.
    pub(super) fn shown(&self) -> String {
        without_secrets(&self.to_string())
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.https { "https" } else { "http" }, self.authority, self.path)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

/// Any text that may be a URL, without userinfo and query.
pub(super) fn without_secrets(text: &str) -> String {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.rsplit('@').next().unwrap_or_default().to_owned();
    };
    // To the last `@` anywhere: a password with an unescaped `/` in it must not show either.
    format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, rest)| rest))
}

/// Percent decoding; what is not valid UTF-8 afterwards becomes the replacement character.
pub(super) fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digit = |index: usize| tail.get(index).and_then(|byte| char::from(*byte).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

fn credentials(userinfo: &str) -> Credentials {
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    Credentials { user: percent_decode(user), password: percent_decode(password) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn userinfo_is_taken_out_and_never_shown() {
        let (url, credentials) = Url::parse("https://us%40er:p%3Aw@Store.example:5000/a/b?x=1#y").unwrap();
        assert_eq!(url.to_string(), "https://store.example:5000/a/b?x=1");
        assert_eq!(url.shown(), "https://store.example:5000/a/b");
        assert_eq!(format!("{url:?}"), "https://store.example:5000/a/b");
        let credentials = credentials.unwrap();
        assert_eq!((credentials.user.as_str(), credentials.password.as_str()), ("us@er", "p:w"));
        let error = Url::parse("ftp://user:secret/word@host/").err().unwrap();
        assert_eq!(error.kind(), ImageErrorKind::Unsupported);
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn redirects_resolve_against_the_request() {
        let (url, _) = Url::parse("http://store:80/v2/a/blobs/x").unwrap();
        let joined = |location: &str| url.join(location).unwrap().to_string();
        assert_eq!(joined("https://cdn/x?sig=1"), "https://cdn/x?sig=1");
        assert_eq!(joined("//cdn/x"), "http://cdn/x");
        assert_eq!(joined("/y"), "http://store:80/y");
        assert_eq!(joined("z?a=b://c"), "http://store:80/v2/a/blobs/z?a=b://c");
        assert_eq!(url.origin(), "http://store");
        assert_eq!(url.host(), "store");
        assert_eq!(url.join("file:///etc/passwd").unwrap_err().kind(), ImageErrorKind::Unsupported);
    }
}
