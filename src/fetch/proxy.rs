//! Which requests go through a proxy: what the configuration says, else what the environment says.

use std::fmt;
use std::net::IpAddr;

use ct_codecs::{Base64, Encoder};
use serde::{Deserialize, Serialize};

use qx_release::error::{Error, ErrorKind, Result};
use qx_release::text;
use qx_release::url::Url;

/// The proxies of both schemes. Without any, everything is asked directly.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Proxies {
    http: Setting,
    https: Setting,
    except: Vec<Exception>,
}

/// A proxy, if there is one; or why it cannot be used, which concerns only what would go through it.
type Setting = Option<std::result::Result<Proxy, String>>;

/// What is asked directly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Exception {
    Everything,
    /// The addresses whose first so many bits are those of this one.
    Network(IpAddr, u32),
    /// A host and what is below it, in lower case and without a dot in front; on one port, or on all.
    Host(String, Option<u16>),
}

/// One proxy, reached over plain HTTP.
#[derive(Clone, Serialize, Deserialize)]
pub struct Proxy {
    /// Where it is: scheme, host and port count.
    pub url: Url,
    /// The `Proxy-Authorization` line of a request; empty without credentials. Secret.
    pub authorization: String,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

impl Proxies {
    /// This proxy for everything but the hosts in `except`; none at all without a URL.
    pub fn configured(url: Option<&str>, except: &[String]) -> Result<Proxies> {
        let proxy = url.map(|url| parse("proxy.url", url)).transpose();
        let proxy = proxy.map_err(|why| Error::with(ErrorKind::Usage, why))?;
        Ok(Proxies {
            http: proxy.clone().map(Ok),
            https: proxy.map(Ok),
            except: except.iter().map(|host| Exception::read(host)).collect(),
        })
    }

    /// What the variables say that curl reads: `http_proxy` (not `HTTP_PROXY`, which a web server sets to what a stranger
    /// sent), `https_proxy`, `all_proxy` and `no_proxy`, the last three in capitals too. An empty one is none. They are made
    /// for all programs: one that we cannot use is an error only for what would go through it.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Proxies {
        let first = |names: &[&'static str]| {
            let set = |name| variable(name).filter(|value| !value.trim().is_empty());
            names.iter().find_map(|name| Some((*name, set(name)?)))
        };
        let proxy = |names: &[&'static str]| first(names).map(|(name, url)| parse(name, &url));
        let except = first(&["no_proxy", "NO_PROXY"]).map_or(String::new(), |(_, hosts)| hosts);
        Proxies {
            http: proxy(&["http_proxy", "all_proxy", "ALL_PROXY"]),
            https: proxy(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
            except: except
                .split([',', ' ', '\t'])
                .filter(|host| !host.is_empty())
                .map(Exception::read)
                .collect(),
        }
    }

    /// The proxy that this URL is asked through. The error is one sentence.
    pub fn of(&self, url: &Url) -> std::result::Result<Option<&Proxy>, String> {
        let setting = if url.is_https() {
            &self.https
        } else {
            &self.http
        };
        match setting {
            Some(proxy) if !self.except.iter().any(|except| except.covers(url)) => {
                proxy.as_ref().map(Some).map_err(Clone::clone)
            }
            _ => Ok(None),
        }
    }
}

impl Exception {
    /// `*`, `HOST`, `HOST:PORT`, an address, or a network as `ADDRESS/BITS`.
    fn read(text: &str) -> Exception {
        let text = text.trim();
        if text == "*" {
            return Exception::Everything;
        }
        if let Some((address, bits)) = text.split_once('/')
            && let (Ok(address), Ok(bits)) = (bare(address).parse(), bits.parse())
        {
            return Exception::Network(address, bits);
        }
        if let Ok(address) = bare(text).parse() {
            return Exception::Network(address, u32::MAX);
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok()),
            None => (text, None),
        };
        Exception::Host(normal(host), port)
    }

    fn covers(&self, url: &Url) -> bool {
        let host = normal(url.bare_host());
        match self {
            Exception::Everything => true,
            Exception::Network(network, bits) => host
                .parse()
                .is_ok_and(|address| is_within(address, *network, *bits)),
            Exception::Host(name, port) => {
                let below = || {
                    host.strip_suffix(name.as_str())
                        .is_some_and(|rest| rest.ends_with('.') && !name.is_empty())
                };
                port.is_none_or(|port| port == url.port) && (host == *name || below())
            }
        }
    }
}

fn is_within(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    let (one, other, length) = match (address, network) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (one.to_bits().into(), other.to_bits().into(), 32),
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits(), other.to_bits(), 128),
        _ => return false,
    };
    let differ: u128 = one ^ other;
    differ.checked_shr(length - bits.min(length)).unwrap_or(0) == 0
}

/// An address without the brackets of a URL.
fn bare(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host)
}

fn normal(host: &str) -> String {
    let host = host.trim().trim_start_matches('.').trim_end_matches('.');
    bare(host).to_ascii_lowercase()
}

/// `[http://][USER[:PASSWORD]@]HOST[:PORT]`; user and password may be percent-encoded. The error does not repeat it.
fn parse(from: &str, text: &str) -> std::result::Result<Proxy, String> {
    let bad = || {
        format!(
            "reading the proxy from {from}: it must have the form http://[USER:PASSWORD@]HOST[:PORT]"
        )
    };
    let text = text.trim();
    let rest = match text.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
        Some((scheme, _)) => {
            return Err(format!(
                "reading the proxy from {from}: {} proxies are not supported, only http:// ones",
                text::name(scheme)
            ));
        }
        None => text,
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    let url = Url::parse(&format!("http://{host}{path}")).map_err(|_| bad())?;
    let authorization = match user {
        None => String::new(),
        Some(user) => {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            let mut plain = percent_decoded(name).ok_or_else(bad)?;
            plain.push(b':');
            plain.extend(percent_decoded(password).ok_or_else(bad)?);
            let encoded = Base64::encode_to_string(plain).map_err(|_| bad())?;
            format!("Proxy-Authorization: Basic {encoded}\r\n")
        }
    };
    Ok(Proxy { url, authorization })
}

fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                (high * 16 + low) as u8
            }
            byte => byte,
        });
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(set: &'static [(&str, &str)]) -> Proxies {
        let value = |name: &str| set.iter().find(|(n, _)| *n == name);
        Proxies::from_environment(|name| value(name).map(|(_, v)| (*v).to_owned()))
    }

    fn asked(proxies: &Proxies, url: &str) -> Option<String> {
        let url = Url::parse(url).unwrap();
        proxies.of(&url).unwrap().map(|proxy| proxy.url.to_string())
    }

    #[test]
    fn the_environment_is_read_as_curl_reads_it() {
        type Case = (
            &'static [(&'static str, &'static str)],
            &'static str,
            Option<&'static str>,
        );
        let cases: [Case; 10] = [
            (
                &[("http_proxy", "http://p:1")],
                "http://h/",
                Some("http://p:1/"),
            ),
            (&[("http_proxy", "p:1/")], "http://h/", Some("http://p:1/")),
            (&[("http_proxy", "http://p:1")], "https://h/", None),
            // A web server hands a request's `Proxy:` header to its programs under this name.
            (&[("HTTP_PROXY", "http://evil:1")], "http://h/", None),
            (
                &[("HTTPS_PROXY", "http://p:1")],
                "https://h/",
                Some("http://p:1/"),
            ),
            (
                &[("https_proxy", "http://p:1"), ("HTTPS_PROXY", "http://q:1")],
                "https://h/",
                Some("http://p:1/"),
            ),
            (
                &[("ALL_PROXY", "http://p:1")],
                "http://h/",
                Some("http://p:1/"),
            ),
            (
                &[("all_proxy", "http://a:1"), ("http_proxy", "http://p:1")],
                "http://h/",
                Some("http://p:1/"),
            ),
            (&[("http_proxy", " "), ("all_proxy", "")], "http://h/", None),
            (
                &[("http_proxy", "http://p:1"), ("NO_PROXY", "h")],
                "http://h/",
                None,
            ),
        ];
        for (set, url, expected) in cases {
            let proxies = environment(set);
            assert_eq!(asked(&proxies, url).as_deref(), expected, "{set:?}");
        }
    }

    #[test]
    fn exceptions_are_hosts_and_what_is_below_them() {
        let proxies = environment(&[
            ("http_proxy", "http://p:1"),
            (
                "no_proxy",
                "Example.com, .lan,10.0.0.1 [::1] 192.168.0.0/16,fd00::/8 port.org:81",
            ),
        ]);
        for (host, direct) in [
            ("example.com", true),
            ("EXAMPLE.com.", true),
            ("a.example.com:8080", true),
            ("badexample.com", false),
            ("example.com.evil", false),
            ("x.lan", true),
            ("lan", true),
            ("10.0.0.1", true),
            ("10.0.0.11", false),
            ("[::1]:80", true),
            ("[::2]", false),
            ("192.168.7.1:8080", true),
            ("192.169.0.1", false),
            ("[fd12::1]", true),
            ("[fe80::1]", false),
            ("port.org:81", true),
            ("a.port.org:81", true),
            ("port.org", false),
            ("192.168.org", false),
        ] {
            let url = format!("http://{host}/");
            assert_eq!(asked(&proxies, &url).is_none(), direct, "{host}");
        }
        let all = Proxies::configured(Some("http://p:1"), &["*".into()]).unwrap();
        assert_eq!(asked(&all, "http://h/"), None);
        let none = Proxies::configured(None, &[]).unwrap();
        assert_eq!(asked(&none, "http://h/"), None);
    }

    /// A proxy that we cannot use, for requests that do not go through it.
    #[test]
    fn what_does_not_concern_a_request_is_no_error() {
        let bad = "socks5h://me:secret@p:1080";
        for set in [
            &[("https_proxy", "socks5h://me:secret@p:1080")][..],
            &[
                ("all_proxy", "socks5h://me:secret@p:1080"),
                ("no_proxy", "h"),
            ],
            &[("ALL_PROXY", "https://p"), ("no_proxy", "*")],
        ] {
            let set = set.to_vec();
            let value = |name: &str| set.iter().find(|(n, _)| *n == name);
            let proxies =
                Proxies::from_environment(|name| value(name).map(|(_, v)| (*v).to_owned()));
            assert_eq!(asked(&proxies, "http://h/"), None, "{set:?}");
            let through = proxies.of(&Url::parse("https://other/").unwrap());
            let why = through.err().unwrap_or_default();
            let all = set.iter().any(|(_, value)| *value == "*");
            assert_eq!(why.contains("not supported"), !all, "{set:?}: {why}");
            assert!(!why.contains("secret"), "{bad}: {why}");
        }
    }

    #[test]
    fn a_password_is_sent_and_never_shown() {
        let proxies = Proxies::configured(Some("http://me:p%40ss%3a@p:1"), &[]).unwrap();
        let url = Url::parse("https://h/").unwrap();
        let proxy = proxies.of(&url).unwrap().unwrap();
        // me:p@ss:
        assert_eq!(
            proxy.authorization,
            "Proxy-Authorization: Basic bWU6cEBzczo=\r\n"
        );
        assert!(!format!("{proxies:?}").contains("bWU6"));
        for bad in [
            "https://me:secret@p:1",
            "socks5://me:secret@p:1",
            "http://me:secret@",
            "http://me:secret@p:x",
            "http://me:secret%zz@p:1",
            "http://me:secret@p:1 x",
        ] {
            let error = Proxies::configured(Some(bad), &[]).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Usage);
            assert!(error.chain().contains("proxy.url"), "{}", error.chain());
            assert!(!error.chain().contains("secret"), "{}", error.chain());
        }
    }
}
