//! URLs of files on web servers.

use std::fmt;

use qx_release::text;

/// An `http://` or `https://` URL without user, password and fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    pub(super) https: bool,
    /// As in the URL: an IPv6 address is in brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Path and query; begins with a slash.
    pub(super) path: String,
}

impl Url {
    /// Reads an absolute URL. The error is one sentence.
    pub fn parse(given: &str) -> Result<Url, String> {
        let bad = |why| Err(format!("'{}' {why}", text::url(given)));
        let (https, rest) = match given.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            _ => return bad("is not an http:// or https:// URL"),
        };
        // Whatever is not printable would end up in the request's head.
        if given.len() > 8192 || !given.bytes().all(|b| b.is_ascii_graphic()) {
            return bad(
                "is not a URL: it is too long or contains a character that is not printable ASCII",
            );
        }
        let rest = rest.split('#').next().unwrap_or(rest);
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        let address = |b: u8| b.is_ascii_hexdigit() || b":.".contains(&b);
        let good = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(host) => host.bytes().all(address),
            None => !host.is_empty() && host.bytes().all(name),
        };
        let port = match port {
            None => Some(if https { 443 } else { 80 }),
            Some(port) => port.parse().ok(),
        };
        let (true, Some(port)) = (good, port) else {
            return bad("is not a URL with a valid HOST or HOST:PORT");
        };
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Url {
            https,
            host: host.to_owned(),
            port,
            path: format!("{slash}{path}"),
        })
    }

    /// The URL of a path below this one; the path's bytes are percent-encoded as necessary. What is so already, as
    /// role names are, stays as it is.
    pub fn join(&self, path: &str) -> Url {
        let mut joined = self.path.trim_end_matches('/').to_owned();
        joined.push('/');
        let bytes = path.as_bytes();
        let encoded = |at: usize| {
            let digits = bytes.get(at + 1..at + 3);
            digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
        };
        for (at, &byte) in bytes.iter().enumerate() {
            if byte.is_ascii_alphanumeric()
                || b"-._~/".contains(&byte)
                || byte == b'%' && encoded(at)
            {
                joined.push(byte.into());
            } else {
                joined.push_str(&format!("%{byte:02X}"));
            }
        }
        Url {
            path: joined,
            ..self.clone()
        }
    }

    /// Whether the URL has a query, below which there is nothing.
    pub fn has_query(&self) -> bool {
        self.path.contains('?')
    }

    /// Whether TLS is needed.
    pub fn is_https(&self) -> bool {
        self.https
    }

    pub(super) fn redirected(&self, location: &str) -> Result<Url, String> {
        let scheme = if self.https { "https" } else { "http" };
        let absolute = if location.contains("://") {
            location.to_owned()
        } else if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.starts_with('/') {
            format!("{scheme}://{}{location}", self.authority())
        } else {
            let path = self.path.split('?').next().unwrap_or_default();
            let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
            format!("{scheme}://{}{directory}/{location}", self.authority())
        };
        let url = Url::parse(&absolute)?;
        if self.https && !url.https {
            return Err(format!("'{url}' would downgrade https to http"));
        }
        Ok(url)
    }

    /// Whether the same server is asked in the same way.
    pub(super) fn same_origin(&self, other: &Url) -> bool {
        (self.https, self.port) == (other.https, other.port)
            && self.host.eq_ignore_ascii_case(&other.host)
    }

    pub(super) fn authority(&self) -> String {
        match (self.https, self.port) {
            (true, 443) | (false, 80) => self.host.clone(),
            _ => format!("{}:{}", self.host, self.port),
        }
    }

    /// All of it, for a proxy.
    pub(super) fn whole(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }

    /// For the resolver: without an IPv6 address's brackets.
    pub fn bare_host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }
}

impl fmt::Display for Url {
    /// For people: without its query, which may be what gives a right to it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::url(&self.whole()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_written() {
        for (text, expected) in [
            ("http://h", "http://h/"),
            ("HTTP://h:80/a", "http://h/a"),
            ("https://h:443?q", "https://h/?q"),
            ("http://[::1]:8080/x#y", "http://[::1]:8080/x"),
            ("http://[::1]", "http://[::1]/"),
        ] {
            assert_eq!(Url::parse(text).unwrap().whole(), expected);
        }
        let shown = Url::parse("https://h/x?token=S3CRET").unwrap().to_string();
        assert_eq!(shown, "https://h/x?…");
        for bad in [
            "h",
            "ftp://h",
            "http://",
            "http://user@h/",
            "http://h:x/",
            "http://h:65536/",
            "http://h/a b",
            "http://h/a\r\nX: y",
            "http://[::1",
            "http://é/",
        ] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_encoded() {
        let url = Url::parse("http://h/repo/").unwrap();
        assert_eq!(
            url.join("a/1.é+%2F %2G%ü%?#.json%2").to_string(),
            "http://h/repo/a/1.%C3%A9%2B%2F%20%252G%25%C3%BC%25%3F%23.json%252"
        );
    }

    #[test]
    fn redirects_are_resolved_and_never_leave_https() {
        let url = Url::parse("https://h:8443/a/b?q").unwrap();
        for (location, expected) in [
            ("https://other/x", Some("https://other/x")),
            ("//other/x", Some("https://other/x")),
            ("/x", Some("https://h:8443/x")),
            ("x", Some("https://h:8443/a/x")),
            ("http://h/x", None),
            ("file:///etc/passwd", None),
        ] {
            let url = url.redirected(location).ok().map(|u| u.to_string());
            assert_eq!(url.as_deref(), expected, "{location}");
        }
    }
}
