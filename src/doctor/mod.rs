//! What is wrong with the appliance, or will be when the next update meets it: a line for each check, with its remedy. Looks, and
//! changes nothing.
//!
//! What `check` and `apply` ask before they stop anything ([`crate::proof::preflight`]) is asked here, too, and what `qx-publish check`
//! finds in an init script ([`qx_scratch::init_script`]).

mod checks;

use serde::Serialize;

use crate::model::config::Config;
use crate::status::Status;
use crate::store::Store;
use crate::system::host::Host;
use qx_release::error::{Error, Exit, Result};
use qx_release::manifest::Manifest;
use qx_release::text;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Good,
    /// It works, and something is to be looked at.
    Warning,
    /// An update, or the way back, fails with it.
    Error,
}

/// What a check found.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What was checked.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found, in one sentence.
    pub what: String,
    /// What to do; absent where all is good.
    pub remedy: Option<String>,
}

/// All that was found. As JSON it is documented in `docs/formats.md`.
#[derive(Debug, Serialize)]
pub struct Diagnosis {
    /// 1.
    pub format: u32,
    /// When this was observed (RFC 3339).
    pub time: String,
    /// The worst that was found.
    pub severity: Severity,
    /// What each check found, in the order in which they build on each other.
    pub findings: Vec<Finding>,
}

impl Diagnosis {
    /// Examines an appliance.
    pub fn of(host: &Host, opened: Result<(Store, Result<Config>)>) -> Diagnosis {
        let mut findings = Findings::default();
        match opened {
            Ok((store, config)) => Examined::new(host, &store, &config).examine(&mut findings),
            Err(e) => findings.failed(
                "data directory",
                &e,
                "put a directory, or a mount point, into its place",
            ),
        }
        let findings = findings.0;
        Diagnosis {
            format: 1,
            time: host.timestamp(),
            severity: findings
                .iter()
                .map(|f| f.severity)
                .max()
                .unwrap_or(Severity::Good),
            findings,
        }
    }

    /// How the command ends.
    pub fn exit(&self) -> Exit {
        match self.severity {
            Severity::Good => Exit::Done,
            Severity::Warning => Exit::Failed,
            Severity::Error => Exit::NeedsPerson,
        }
    }

    /// The answer as text.
    pub fn for_people(&self) -> String {
        let mut page = String::new();
        for finding in &self.findings {
            let severity = match finding.severity {
                Severity::Good => "good",
                Severity::Warning => "warning",
                Severity::Error => "ERROR",
            };
            let remedy = finding.remedy.iter().map(|remedy| format!(": {remedy}"));
            let line = format!(
                "{severity:<8} {:<16} {}{}",
                finding.check,
                finding.what,
                remedy.collect::<String>()
            );
            page += &text::line(&line);
            page.push('\n');
        }
        page
    }
}

/// What is examined.
struct Examined<'a> {
    host: &'a Host,
    store: &'a Store,
    config: &'a Result<Config>,
    status: Status,
    /// The manifests of what runs, and of the factory set.
    running: Option<Manifest>,
    factory: Option<Manifest>,
}

impl<'a> Examined<'a> {
    fn new(host: &'a Host, store: &'a Store, config: &'a Result<Config>) -> Examined<'a> {
        let status = Status::observe(host, store, config);
        let manifest = |set| Some(store.manifest(set).ok()??.0);
        Examined {
            host,
            store,
            config,
            running: manifest(status.running.set),
            factory: manifest(crate::model::slot::Set::Factory),
            status,
        }
    }
}

/// What was found so far.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn good(&mut self, check: &'static str, what: impl Into<String>) {
        self.add(check, Severity::Good, what.into(), None);
    }

    fn warning(&mut self, check: &'static str, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(check, Severity::Warning, what.into(), Some(remedy.into()));
    }

    fn error(&mut self, check: &'static str, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(check, Severity::Error, what.into(), Some(remedy.into()));
    }

    fn failed(&mut self, check: &'static str, e: &Error, remedy: &str) {
        self.error(check, e.chain(), remedy);
    }

    fn add(
        &mut self,
        check: &'static str,
        severity: Severity,
        what: String,
        remedy: Option<String>,
    ) {
        let what = text::line(&what);
        // One fault is often seen by several.
        if severity == Severity::Good || !self.0.iter().any(|found| found.what == what) {
            self.0.push(Finding {
                check,
                severity,
                what,
                remedy,
            });
        }
    }
}
