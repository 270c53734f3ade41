//! Several places that have the same repository, with the same trust: the next one is asked when one fails.

use std::cell::{Cell, RefCell, RefMut};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::fetcher::Fetcher;
use super::{Options, Source};
use crate::fetch::port::{Fetch, Target};
use crate::model::source::SourceAddress;
use crate::system::host::Host;
use crate::system::medium::Medium;
use qx_release::error::{Context, Error, ErrorKind, Result};
use qx_release::manifest::Component;

/// Mirrors of one repository, in the order of the configuration.
///
/// A refresh is tried whole with each until one succeeds ([`Mirrors::refresh`]). What is fetched after that comes from that
/// one; where it fails, from the others. One that did not answer after all tries is asked last from then on, and once a file.
pub struct Mirrors {
    host: Host,
    mirrors: Vec<Mirror>,
    /// The one that refreshes, or did.
    first: Cell<usize>,
    refreshing: Cell<bool>,
    warnings: RefCell<Vec<String>>,
    /// Whether it was told what the fetchers are not confined in.
    told: Cell<bool>,
}

struct Mirror {
    address: SourceAddress,
    /// Opens it when it is asked first: a disk that is not there is no trouble while others answer.
    fetcher: RefCell<Fetcher>,
    /// What it lies on, once that is mounted: unmounted when nobody asks any more.
    medium: RefCell<Option<Medium>>,
}

/// An artifact that a mirror's fetcher has open.
pub struct Fetched<'a> {
    fetcher: &'a RefCell<Fetcher>,
}

impl Fetched<'_> {
    /// Unpacks it; see [`Mirrors::let_write`].
    pub fn unpack(self, component: &Component, staging: &Path) -> Result<()> {
        self.fetcher.borrow_mut().unpack(component, staging)
    }
}

impl Mirror {
    /// For people.
    fn name(&self) -> String {
        self.address.to_string()
    }

    fn is_web(&self) -> bool {
        matches!(self.address, SourceAddress::Url(_))
    }

    fn is_tired(&self) -> bool {
        self.fetcher.borrow().tired
    }
}

impl Mirrors {
    /// Of at least one source. Whoever fetches for us holds the lock with us.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a URL that is none, or that this build cannot use.
    pub fn new(
        sources: impl IntoIterator<Item = SourceAddress>,
        options: &Options,
        host: &Host,
        lock: OwnedFd,
    ) -> Result<Mirrors> {
        let lock = Rc::new(lock);
        let mirror = |address: SourceAddress| {
            if matches!(address, SourceAddress::Url(_)) {
                // Connects to nothing yet.
                Source::open(address.clone(), options)?;
            }
            let fetcher = Fetcher::new(address.clone(), options.clone(), Rc::clone(&lock));
            Ok(Mirror {
                address,
                fetcher: fetcher.into(),
                medium: RefCell::default(),
            })
        };
        let mirrors = sources
            .into_iter()
            .map(mirror)
            .collect::<Result<Vec<Mirror>>>()?;
        Ok(Mirrors {
            host: host.clone(),
            mirrors,
            first: Cell::new(0),
            refreshing: Cell::new(false),
            warnings: RefCell::default(),
            told: Cell::new(false),
        })
    }

    /// Does `refresh` with one mirror after the other until it succeeds; meanwhile only that mirror is asked.
    ///
    /// # Errors
    /// If none succeeds, one that names each and why it failed: [`ErrorKind::NoSpace`] if space ran out, else
    /// [`ErrorKind::Untrusted`] if one was not to be trusted, else what a failed transfer is. [`ErrorKind::Usage`] at once: no mirror has a part in that.
    pub fn refresh<'a, T>(
        &'a self,
        mut refresh: impl FnMut(&'a Mirrors) -> Result<T>,
    ) -> Result<T> {
        let mut failures = Vec::new();
        for (number, mirror) in self.mirrors.iter().enumerate() {
            self.first.set(number);
            self.refreshing.set(true);
            let opened = self.fetcher(mirror).map(drop);
            let refreshed = opened.and_then(|()| refresh(self));
            self.refreshing.set(false);
            match refreshed {
                Ok(refreshed) => return Ok(refreshed),
                Err(e) if e.kind == ErrorKind::Usage => return Err(e),
                Err(e) if self.mirrors.len() == 1 => {
                    return Err(e).doing(|| format!("refreshing trust from {}", mirror.name()));
                }
                Err(e) => self.failed(mirror, e, &mut failures),
            }
        }
        Err(all_failed("refreshing trust", failures))
    }

    /// The mirror that refreshed, for people.
    pub fn name(&self) -> String {
        self.mirrors[self.first.get()].name()
    }

    /// The medium that the mirror lies on which refreshed, if it does.
    pub fn medium(&self) -> Option<String> {
        match &self.mirrors[self.first.get()].address {
            SourceAddress::Medium(medium) => Some(medium.device.clone()),
            SourceAddress::Url(_) | SourceAddress::Path(_) => None,
        }
    }

    /// Whether [`Mirrors::artifact`] may copy what it gets to the downloads: directories and bundles are read in place.
    pub fn copies_artifacts(&self) -> bool {
        self.mirrors.iter().any(Mirror::is_web)
    }

    /// From now on artifacts may be downloaded to and unpacked in these directories, which are there.
    pub fn let_write(&self, directories: &[PathBuf]) {
        for mirror in &self.mirrors {
            mirror
                .fetcher
                .borrow_mut()
                .let_write(directories.to_owned());
        }
    }

    /// Nothing more is asked for now.
    pub fn rest(&self) {
        for mirror in &self.mirrors {
            mirror.fetcher.borrow_mut().end();
            mirror.medium.take();
        }
    }

    /// An artifact; see [`Source::artifact`]. A download that one mirror began is resumed from the next.
    pub fn artifact(
        &self,
        target: &Target,
        downloads: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Fetched<'_>> {
        self.first_good(&target.path, |mirror, is_last| {
            // What lies in place is checked while it is unpacked, when it is too late to ask another.
            let check = !mirror.is_web() && !is_last;
            self.fetcher(mirror)?
                .artifact(target, downloads, check, progress)?;
            let fetcher = &mirror.fetcher;
            Ok(Fetched { fetcher })
        })
    }

    /// A mirror that is open. What its fetcher is not confined in is told once.
    fn fetcher<'a>(&self, mirror: &'a Mirror) -> Result<RefMut<'a, Fetcher>> {
        let mut fetcher = mirror.fetcher.borrow_mut();
        let mut medium = mirror.medium.borrow_mut();
        if let (SourceAddress::Medium(address), None) = (&mirror.address, &*medium) {
            let mounted = Medium::open(&self.host, &address.device)?;
            fetcher.lies_at(mounted.source(&address.path)?);
            *medium = Some(mounted);
        }
        let opened = fetcher.open();
        for missing in fetcher.unconfined.drain(..) {
            let what = format!("the process that fetches is not fully confined: {missing}");
            let mut warnings = self.warnings.borrow_mut();
            if !self.told.replace(true) {
                warnings.push(what);
            }
        }
        opened.map(|()| fetcher)
    }

    /// What failed since this was asked last, a line each, where another mirror was asked instead.
    pub fn take_warnings(&self) -> Vec<String> {
        self.warnings.take()
    }

    fn order(&self) -> Vec<&Mirror> {
        let first = self.first.get();
        if self.refreshing.get() {
            return vec![&self.mirrors[first]];
        }
        let mut order: Vec<_> = self.mirrors.iter().enumerate().collect();
        order.sort_by_key(|(number, mirror)| (mirror.is_tired(), *number != first));
        order.into_iter().map(|(_, mirror)| mirror).collect()
    }

    fn first_good<'a, T>(
        &'a self,
        path: &str,
        mut get: impl FnMut(&'a Mirror, bool) -> Result<T>,
    ) -> Result<T> {
        let order = self.order();
        let mut failures = Vec::new();
        for (number, mirror) in order.iter().enumerate() {
            match get(mirror, number + 1 == order.len()) {
                Ok(got) => return Ok(got),
                Err(e) if order.len() == 1 || e.kind == ErrorKind::NoSpace => return Err(e),
                Err(e) => self.failed(mirror, e, &mut failures),
            }
        }
        Err(all_failed(&format!("fetching {path}"), failures))
    }

    fn failed(&self, mirror: &Mirror, error: Error, failures: &mut Vec<Error>) {
        let Err(error) = Err::<(), _>(error).doing(|| mirror.name()) else {
            return;
        };
        self.warnings.borrow_mut().push(error.chain());
        failures.push(error);
    }
}

impl Fetch for Mirrors {
    fn small(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        self.first_good(path, |mirror, _| {
            self.fetcher(mirror)?.small(path, limit, false)
        })
    }

    fn required(
        &self,
        path: &str,
        limit: u64,
        accept: &mut dyn FnMut(Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        self.first_good(path, |mirror, _| {
            let found = self.fetcher(mirror)?.small(path, limit, true)?;
            accept(found.unwrap_or_default())
        })
    }

    fn may_have(&self, path: &str) -> bool {
        let mirror = &self.mirrors[self.first.get()];
        if mirror.is_web() {
            return true;
        }
        let may = self
            .fetcher(mirror)
            .and_then(|mut fetcher| fetcher.may_have(path));
        may.unwrap_or(false)
    }
}

fn all_failed(what: &str, failures: Vec<Error>) -> Error {
    let kind = [ErrorKind::NoSpace, ErrorKind::Untrusted]
        .into_iter()
        .find(|kind| failures.iter().any(|e| e.kind == *kind))
        .unwrap_or(ErrorKind::Unavailable);
    let why: Vec<String> = failures.iter().map(Error::chain).collect();
    let why = why.join("; ");
    Error::with(kind, format!("{what}: every source failed: {why}"))
}
