//! What goes back on the medium that a release came on: a receipt, for whoever looks after appliances without a network.

use ed25519_compact::KeyPair;
use serde::Serialize;

use super::Appliance;
use crate::status::Status;
use crate::store;
use crate::system::medium::Medium;
use qx_release::durable;
use qx_release::error::{Context, Error, Exit, Result};
use qx_release::text;

/// The only receipt format there is.
const FORMAT: u32 = 1;
/// Where they are on the medium.
const DIRECTORY: &str = "receipts";
/// A key is at most this long, in bytes.
const MAX_KEY: u64 = 1 << 14;

/// The medium that an operation's release came on.
#[derive(Debug, Clone)]
pub struct CameOn {
    /// `LABEL=…`, as [`Medium::open`] takes it.
    pub device: String,
    /// Whether it was named on the command line: then its owner wants to be told that there was nothing to do, too.
    pub named: bool,
}

/// A receipt, as `docs/formats.md` describes it.
#[derive(Serialize)]
struct Receipt<'a> {
    format: u32,
    machine: &'a str,
    written: String,
    result: Exit,
    status: Status,
}

impl Appliance {
    /// Writes a receipt of how the command ended, if a release came on a medium. That it cannot be written is told, and changes
    /// nothing.
    pub fn leave_receipt(&mut self, result: Exit) {
        let Some(medium) = self.medium.take() else {
            return;
        };
        if result == Exit::NothingNewer && !medium.named {
            return;
        }
        match self.write_receipt(&medium.device, result) {
            Ok(name) => self
                .log
                .info("receipt", format!("{name} is written on {}", medium.device)),
            Err(e) => self.log.warning("receipt", e.chain()),
        }
    }

    fn write_receipt(&self, device: &str, result: Exit) -> Result<String> {
        let machine = self.machine_name();
        let written = self.host.timestamp();
        let name = format!("{machine}-{}.json", written.replace(['-', ':'], ""));
        let doing = || format!("writing the receipt {name}");
        let config = Ok(self.config.clone());
        let mut receipt = serde_json::to_vec_pretty(&Receipt {
            format: FORMAT,
            machine: &machine,
            written,
            result,
            status: Status::observe(&self.host, &self.store, &config),
        })
        .doing(doing)?;
        receipt.push(b'\n');
        let signature = self.sign(&receipt)?;
        let medium = Medium::open_to_write(&self.host, device).doing(doing)?;
        let directory = medium.place().join(DIRECTORY);
        durable::create_dir(&directory, 0o755)?;
        if let Some(signature) = signature {
            let place = directory.join(format!("{name}.sig"));
            durable::write_with_mode(&place, &signature, 0o644)?;
        }
        durable::write_with_mode(&directory.join(&name), &receipt, 0o644)?;
        medium.close()?;
        Ok(name)
    }

    fn first_line(&self, file: &str) -> Option<String> {
        let text = store::read_if_there(&self.host.path(file).ok()?, 1 << 10).ok()??;
        let line = String::from_utf8_lossy(&text)
            .lines()
            .next()?
            .trim()
            .to_owned();
        Some(line).filter(|line| !line.is_empty())
    }

    /// What this machine is called in receipts, fit for a file name.
    fn machine_name(&self) -> String {
        let name = match &self.config.machine.name {
            Some(name) => name.to_string(),
            None => {
                // Before userland the kernel does not know the name yet.
                let files = ["/etc/machine-id", "/etc/hostname"];
                let mut names = files.iter().filter_map(|file| self.first_line(file));
                let uname = rustix::system::uname();
                let nodename = || uname.nodename().to_string_lossy().into_owned();
                names.next().unwrap_or_else(nodename)
            }
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '_';
        name.chars().filter(|c| plain(*c)).take(64).collect()
    }

    /// Ed25519 (RFC 8032) over the very bytes of the file.
    fn sign(&self, receipt: &[u8]) -> Result<Option<Vec<u8>>> {
        let Some(file) = &self.config.machine.key_file else {
            return Ok(None);
        };
        let path = self.host.path(file)?;
        let doing = || format!("signing the receipt with {}", text::path(&path));
        let pem = store::read_if_there(&path, MAX_KEY)?
            .ok_or_else(|| Error::new(format!("{}: it does not exist", doing())))?;
        let pem = String::from_utf8_lossy(&pem);
        let pair = KeyPair::from_pem(&pem).map_err(|_| {
            Error::new(format!(
                "{}: it is no Ed25519 private key in PEM (PKCS#8)",
                doing()
            ))
        })?;
        Ok(Some(pair.sk.sign(receipt, None).to_vec()))
    }
}
