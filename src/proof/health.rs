//! Health checks: one try of one probe. How patiently they are tried is in [`crate::proof::prove`].

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::fetch;
use crate::system::process::Program;
use crate::system::service::Manager;
use qx_release::json;
use qx_release::manifest::{Check, JsonField, Probe};
use qx_release::text;

/// A health check's answer is at most this long, in bytes.
const MAX_BODY: u64 = 1 << 20;

/// A try that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The kind of failure: equal for two tries that failed in the same way, whatever the time, the process or the output.
    pub how: String,
    /// What happened, in one sentence.
    pub why: String,
}

impl Fault {
    /// A failure whose message is also its kind.
    pub fn new(why: impl Into<String>) -> Fault {
        let why = why.into();
        Fault {
            how: why.clone(),
            why,
        }
    }

    /// A failure of this kind, with a more detailed message.
    pub fn alike(how: impl Into<String>, why: impl Into<String>) -> Fault {
        Fault {
            how: how.into(),
            why: why.into(),
        }
    }
}

/// The [`Fault::how`] of a refused connection.
pub const REFUSED: &str = "refused";

/// Tries a check once. `find` tells where a program of the set is, `directory` is where it runs. Returns the address that
/// answered, if it is this machine's own.
pub fn try_once(
    check: &Check,
    find: &dyn Fn(&str) -> Option<PathBuf>,
    directory: &Path,
    manager: &Manager,
) -> Result<Option<SocketAddr>, Fault> {
    let timeout = Duration::from_secs(check.timeout_s);
    match &check.probe {
        Probe::Http { url, status, json } => ask(url, *status, json.as_ref(), timeout),
        Probe::Tcp { address } => connect(address, timeout),
        Probe::Exec { run } => execute(run, find, directory, timeout).map(|()| None),
        Probe::Service { service } => match manager.runs(service) {
            Ok(()) => Ok(None),
            Err(why) => Err(Fault::alike(
                "stopped",
                format!("service {service} is not running: {why}"),
            )),
        },
    }
}

/// What a check over the network connects to, as it is written.
pub fn endpoint(probe: &Probe) -> Option<&str> {
    match probe {
        Probe::Http { url, .. } => {
            let rest = url.strip_prefix("http://")?;
            rest.split(['/', '?', '#']).next()
        }
        Probe::Tcp { address } => Some(address),
        Probe::Exec { .. } | Probe::Service { .. } => None,
    }
}

fn ask(
    url: &str,
    status: u16,
    json: Option<&JsonField>,
    timeout: Duration,
) -> Result<Option<SocketAddr>, Fault> {
    let answer = fetch::get(url, timeout, MAX_BODY).map_err(|e| {
        let refused = e.io_kind() == Some(io::ErrorKind::ConnectionRefused);
        let why = e.chain();
        Fault::alike(if refused { REFUSED } else { &why }, why.as_str())
    })?;
    let failed = |why: String| Err(Fault::new(why));
    let shown = text::url(url);
    if answer.status != status {
        return failed(format!("{shown} answered {}, not {status}", answer.status));
    }
    let Some(field) = json else {
        return Ok(answer.own_address);
    };
    let body: serde_json::Value = match json::parse(&answer.body) {
        Ok(body) => body,
        Err(e) => return failed(format!("{shown} did not answer with JSON: {e}")),
    };
    let pointer = text::clean(&field.pointer, text::VALUE);
    let value_of = |value: &serde_json::Value| text::clean(&value.to_string(), text::VALUE);
    match body.pointer(&field.pointer) {
        Some(value) if *value == field.equals => Ok(answer.own_address),
        Some(value) => failed(format!(
            "{shown} has {pointer} = {}, not {}",
            value_of(value),
            value_of(&field.equals)
        )),
        None => failed(format!("{shown} has no {pointer}")),
    }
}

fn execute(
    run: &[String],
    find: &dyn Fn(&str) -> Option<PathBuf>,
    directory: &Path,
    timeout: Duration,
) -> Result<(), Fault> {
    let mut vector = run.to_vec();
    if let Some(program) = vector.first_mut() {
        let path =
            find(program).ok_or_else(|| Fault::new(format!("no component contains {program}")))?;
        *program = path.display().to_string();
    }
    let program = Program {
        directory,
        ..Program::new(&vector, timeout)
    };
    match program.run(&mut |_, _| {}) {
        Ok(ended) if ended.ok() => Ok(()),
        Ok(ended) => Err(Fault::alike(
            ended.how(),
            format!("{} {}", text::command(run), ended.describe()),
        )),
        Err(e) => Err(Fault::new(e.chain())),
    }
}

fn connect(address: &str, timeout: Duration) -> Result<Option<SocketAddr>, Fault> {
    let failed = |how: &str, e: &dyn fmt::Display| {
        let address = text::clean(address, text::VALUE);
        Fault::alike(how, format!("connecting to {address}: {e}"))
    };
    let deadline = Instant::now() + timeout;
    let mut last = failed("no address", &"no address");
    let addresses = address
        .to_socket_addrs()
        .map_err(|e| failed("no address", &e))?;
    for address in addresses {
        let left = deadline.saturating_duration_since(Instant::now());
        match TcpStream::connect_timeout(&address, left.max(Duration::from_millis(1))) {
            Ok(connection) => return Ok(fetch::own_address(&connection)),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => last = failed(REFUSED, &e),
            Err(e) => last = failed(&e.kind().to_string(), &e),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn this_machine_is_known_by_the_address_that_answers_and_not_by_its_spelling() {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in [
            "127.0.0.1",
            "localhost",
            "0.0.0.0",
            "127.1.2.3",
            "127.1",
            "2130706433",
            "[::ffff:127.0.0.1]",
        ] {
            let answered = connect(&format!("{host}:{port}"), Duration::from_secs(60));
            let answered = answered.unwrap_or_else(|e| panic!("{host}: {e:?}"));
            assert!(answered.is_some(), "{host}");
        }
        drop(listener);
        let refused = connect(&format!("127.0.0.1:{port}"), Duration::from_secs(60));
        assert_eq!(refused.unwrap_err().how, REFUSED);
    }
}
