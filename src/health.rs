//! Health checks: one try of one probe. How patiently they are tried is in [`crate::prove`].

use std::fmt;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::fetch;
use crate::json;
use crate::manifest::{Check, Probe};
use crate::process::{self, Program};
use crate::service::Manager;

/// A health check's answer is at most this long, in bytes.
const MAX_BODY: u64 = 1 << 20;

/// Tries a check once. `find` tells where a program of the set is, `directory` is where it runs. `Err` is one sentence.
pub fn try_once(
    check: &Check,
    find: &dyn Fn(&str) -> Option<PathBuf>,
    directory: &Path,
    manager: &Manager,
) -> Result<(), String> {
    let timeout = Duration::from_secs(check.timeout_s);
    match &check.probe {
        Probe::Http { url, status, json } => {
            let (got, body) = fetch::get(url, timeout, MAX_BODY).map_err(|e| e.chain())?;
            if got != *status {
                return Err(format!("{url} answered {got}, not {status}"));
            }
            let Some(field) = json else {
                return Ok(());
            };
            let body: serde_json::Value =
                json::parse(&body).map_err(|e| format!("{url} answered no JSON: {e}"))?;
            match body.pointer(&field.pointer) {
                Some(value) if *value == field.equals => Ok(()),
                Some(value) => Err(format!(
                    "{url} has {} = {value}, not {}",
                    field.pointer, field.equals
                )),
                None => Err(format!("{url} has no {}", field.pointer)),
            }
        }
        Probe::Tcp { address } => connect(address, timeout),
        Probe::Exec { run } => {
            let mut vector = run.clone();
            if let Some(program) = vector.first_mut() {
                let path = find(program).ok_or_else(|| format!("{program} is in no component"))?;
                *program = path.display().to_string();
            }
            let program = Program {
                directory,
                ..Program::new(&vector, timeout)
            };
            match program.run(&mut |_, _| {}) {
                Ok(ended) if ended.ok() => Ok(()),
                Ok(ended) => Err(format!("{} {}", run.join(" "), ended.describe())),
                Err(e) => Err(e.chain()),
            }
        }
        Probe::Service { service } => manager
            .runs(service)
            .map_err(|why| format!("service {service} does not run: {why}")),
    }
}

/// The port on this machine itself that a check talks to.
pub fn loopback_port(probe: &Probe) -> Option<u16> {
    let (authority, default) = match probe {
        Probe::Http { url, .. } => {
            let rest = url.strip_prefix("http://")?;
            (rest.split(['/', '?', '#']).next()?, Some(80))
        }
        Probe::Tcp { address } => (address.as_str(), None),
        _ => return None,
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (authority, default?),
    };
    process::is_loopback(host).then_some(port)
}

fn connect(address: &str, timeout: Duration) -> Result<(), String> {
    let failed = |e: &dyn fmt::Display| format!("connecting to {address}: {e}");
    let deadline = Instant::now() + timeout;
    let mut last = failed(&"no address");
    for address in address.to_socket_addrs().map_err(|e| failed(&e))? {
        let left = deadline.saturating_duration_since(Instant::now());
        match TcpStream::connect_timeout(&address, left.max(Duration::from_millis(1))) {
            Ok(_) => return Ok(()),
            Err(e) => last = failed(&e),
        }
    }
    Err(last)
}

impl fmt::Display for Probe {
    /// As messages call it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Probe::Http { url, .. } => write!(f, "http {url}"),
            Probe::Tcp { address } => write!(f, "tcp {address}"),
            Probe::Exec { run } => write!(f, "exec {}", run.join(" ")),
            Probe::Service { service } => write!(f, "service {service}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machines_own_ports_are_looked_up() {
        let http = |url: &str| Probe::Http {
            url: url.into(),
            status: 200,
            json: None,
        };
        for (url, port) in [
            ("http://127.0.0.1:8080/health", Some(8080)),
            ("http://localhost/health", Some(80)),
            ("http://[::1]:81/", Some(81)),
            ("http://[::1]/", Some(80)),
            ("http://10.0.0.1:8080/", None),
        ] {
            assert_eq!(loopback_port(&http(url)), port, "{url}");
        }
        let tcp = |address: &str| Probe::Tcp {
            address: address.into(),
        };
        assert_eq!(loopback_port(&tcp("127.0.0.1:22")), Some(22));
        assert_eq!(loopback_port(&tcp("example.org:22")), None);
    }
}
