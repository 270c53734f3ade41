//! URLs of files on web servers.

use std::fmt;

use crate::text;

/// An `http://` or `https://` URL without user, password and fragment.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Url {
    /// Whether TLS is needed.
    pub https: bool,
    /// As in the URL: an IPv6 address is in brackets.
    pub host: String,
    /// Given, or the scheme's own.
    pub port: u16,
    /// Path and query; begins with a slash.
    pub path: String,
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

    /// Where a reference leads that stands in an answer from here (RFC 3986, section 5.2). What a header should not contain, and
    /// browsers understand all the same, is percent-encoded.
    pub fn redirected(&self, location: &str) -> Result<Url, String> {
        let scheme = if self.https { "https" } else { "http" };
        let location = encoded(location.split('#').next().unwrap_or_default());
        let absolute = if has_scheme(&location) {
            location
        } else if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else {
            format!(
                "{scheme}://{}{}",
                self.authority(),
                self.resolved(&location)
            )
        };
        let url = Url::parse(&absolute)?;
        if self.https && !url.https {
            return Err(format!("'{url}' would downgrade https to http"));
        }
        Ok(url)
    }

    /// Path and query of a reference without scheme and host.
    fn resolved(&self, reference: &str) -> String {
        let (path, query) = match self.path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (self.path.as_str(), None),
        };
        let (to, asked) = match reference.split_once('?') {
            Some((to, asked)) => (to, Some(asked)),
            None => (reference, None),
        };
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let (path, query) = match to {
            "" => (path.to_owned(), asked.or(query)),
            _ if to.starts_with('/') => (without_dots(to), asked),
            _ => (without_dots(&format!("{directory}/{to}")), asked),
        };
        match query {
            Some(query) => format!("{path}?{query}"),
            None => path,
        }
    }

    /// Whether the same server is asked in the same way.
    pub fn same_origin(&self, other: &Url) -> bool {
        (self.https, self.port) == (other.https, other.port)
            && self.host.eq_ignore_ascii_case(&other.host)
    }

    /// Host and port; without the port if it is the scheme's own.
    pub fn authority(&self) -> String {
        match (self.https, self.port) {
            (true, 443) | (false, 80) => self.host.clone(),
            _ => format!("{}:{}", self.host, self.port),
        }
    }

    /// All of it, for a proxy.
    pub fn whole(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }

    /// For the resolver: without an IPv6 address's brackets.
    pub fn bare_host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }
}

/// Whether a reference begins with a scheme; a colon may also stand further back.
fn has_scheme(reference: &str) -> bool {
    let Some((scheme, _)) = reference.split_once(':') else {
        return false;
    };
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
    scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.bytes().all(allowed)
}

/// A path without `.` and `..` (RFC 3986, section 5.2.4).
fn without_dots(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let mut is_directory = false;
    for segment in path.split('/').skip(1) {
        is_directory = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    let end = match is_directory && !segments.is_empty() {
        true => "/",
        false => "",
    };
    format!("/{}{end}", segments.join("/"))
}

/// With the bytes percent-encoded that no URL has.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.trim().bytes() {
        match byte.is_ascii_graphic() {
            true => encoded.push(byte.into()),
            false => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
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
            // A colon or two slashes further back make no scheme.
            (
                "x?to=http://other/",
                Some("https://h:8443/a/x?to=http://other/"),
            ),
            ("./x:y", Some("https://h:8443/a/x:y")),
            ("/x/http://other", Some("https://h:8443/x/http://other")),
            ("x y\u{e9}", Some("https://h:8443/a/x%20y%C3%A9")),
            ("http://h/x", None),
            ("HTTP://h/x", None),
            ("file:///etc/passwd", None),
            ("mailto:a@b", None),
        ] {
            let url = url.redirected(location).ok().map(|u| u.whole());
            assert_eq!(url.as_deref(), expected, "{location}");
        }
    }

    /// RFC 3986, section 5.4, but for other schemes.
    #[test]
    fn references_are_resolved_as_the_standard_says() {
        let base = Url::parse("http://a/b/c/d;p?q").unwrap();
        for (reference, expected) in [
            ("g", "http://a/b/c/g"),
            ("./g", "http://a/b/c/g"),
            ("g/", "http://a/b/c/g/"),
            ("/g", "http://a/g"),
            ("//g", "http://g/"),
            ("?y", "http://a/b/c/d;p?y"),
            ("g?y", "http://a/b/c/g?y"),
            ("#s", "http://a/b/c/d;p?q"),
            ("g#s", "http://a/b/c/g"),
            ("g?y#s", "http://a/b/c/g?y"),
            (";x", "http://a/b/c/;x"),
            ("g;x", "http://a/b/c/g;x"),
            ("g;x?y#s", "http://a/b/c/g;x?y"),
            ("", "http://a/b/c/d;p?q"),
            (".", "http://a/b/c/"),
            ("./", "http://a/b/c/"),
            ("..", "http://a/b/"),
            ("../", "http://a/b/"),
            ("../g", "http://a/b/g"),
            ("../..", "http://a/"),
            ("../../", "http://a/"),
            ("../../g", "http://a/g"),
            ("../../../g", "http://a/g"),
            ("../../../../g", "http://a/g"),
            ("/./g", "http://a/g"),
            ("/../g", "http://a/g"),
            ("g.", "http://a/b/c/g."),
            (".g", "http://a/b/c/.g"),
            ("g..", "http://a/b/c/g.."),
            ("..g", "http://a/b/c/..g"),
            ("./../g", "http://a/b/g"),
            ("./g/.", "http://a/b/c/g/"),
            ("g/./h", "http://a/b/c/g/h"),
            ("g/../h", "http://a/b/c/h"),
            ("g;x=1/./y", "http://a/b/c/g;x=1/y"),
            ("g;x=1/../y", "http://a/b/c/y"),
            ("g?y/./x", "http://a/b/c/g?y/./x"),
            ("g?y/../x", "http://a/b/c/g?y/../x"),
            ("g#s/../x", "http://a/b/c/g"),
        ] {
            let found = base.redirected(reference).unwrap().whole();
            assert_eq!(found, expected, "{reference}");
        }
    }
}
