//! Several places that have the same repository, with the same trust: the next one is asked when one fails.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::path::Path;

use super::{Artifact, Options, Source};
use crate::fetch::port::{Fetch, Target};
use crate::model::source::SourceAddress;
use qx_release::digest::{Digest, Hasher};
use qx_release::error::{Context, Error, ErrorKind, Result};

/// Mirrors of one repository, in the order of the configuration.
///
/// A refresh is tried whole with each until one succeeds ([`Mirrors::refresh`]). What is fetched after that comes from that
/// one; where it fails, from the others. One that did not answer after all tries is asked last from then on, and once a file.
pub struct Mirrors {
    mirrors: Vec<Mirror>,
    /// The one that refreshes, or did.
    first: Cell<usize>,
    refreshing: Cell<bool>,
    warnings: RefCell<Vec<String>>,
}

struct Mirror {
    address: SourceAddress,
    options: Options,
    source: OnceCell<Result<Source>>,
}

impl Mirror {
    /// Opened when it is asked first: a disk that is not there is no trouble while others answer.
    fn source(&self) -> Result<&Source> {
        self.source
            .get_or_init(|| Source::open(self.address.clone(), &self.options))
            .as_ref()
            .map_err(|e| Error::with(e.kind, e.chain()))
    }

    /// For people.
    fn name(&self) -> String {
        self.address.to_string()
    }

    fn is_web(&self) -> bool {
        matches!(self.address, SourceAddress::Url(_))
    }

    fn is_tired(&self) -> bool {
        match self.source.get() {
            Some(Ok(source)) => source.given_up.get(),
            Some(Err(_)) => true,
            None => false,
        }
    }
}

impl Mirrors {
    /// Of at least one source.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a URL that is none, or that this build cannot use.
    pub fn new(
        sources: impl IntoIterator<Item = SourceAddress>,
        options: &Options,
    ) -> Result<Mirrors> {
        let mirrors: Vec<Mirror> = sources
            .into_iter()
            .map(|address| Mirror {
                address,
                options: options.clone(),
                source: OnceCell::new(),
            })
            .collect();
        for mirror in mirrors.iter().filter(|mirror| mirror.is_web()) {
            mirror.source()?;
        }
        Ok(Mirrors {
            mirrors,
            first: Cell::new(0),
            refreshing: Cell::new(false),
            warnings: RefCell::default(),
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
            let refreshed = mirror.source().and_then(|_| refresh(self));
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

    /// Whether [`Mirrors::artifact`] may copy what it gets to the downloads: directories and bundles are read in place.
    pub fn copies_artifacts(&self) -> bool {
        self.mirrors.iter().any(Mirror::is_web)
    }

    /// An artifact; see [`Source::artifact`]. A download that one mirror began is resumed from the next.
    pub fn artifact(
        &self,
        target: &Target,
        downloads: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Artifact> {
        let Target {
            length,
            sha256,
            path,
        } = target;
        self.first_good(path, |mirror, is_last| {
            let source = mirror.source()?;
            let mut get = || source.artifact(path, *length, sha256, downloads, progress);
            // What lies in place is checked while it is unpacked, when it is too late to ask another.
            if !mirror.is_web() && !is_last {
                check(get()?, sha256, || source.name_of(path))?;
            }
            get()
        })
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

    fn first_good<T>(
        &self,
        path: &str,
        mut get: impl FnMut(&Mirror, bool) -> Result<T>,
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
        self.first_good(path, |mirror, _| mirror.source()?.small(path, limit))
    }

    fn required(
        &self,
        path: &str,
        limit: u64,
        accept: &mut dyn FnMut(Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        self.first_good(path, |mirror, _| {
            accept(mirror.source()?.required(path, limit)?)
        })
    }

    fn may_have(&self, path: &str) -> bool {
        let source = self.mirrors[self.first.get()].source();
        source.is_ok_and(|source| source.may_have(path))
    }
}

fn check(mut artifact: Artifact, sha256: &Digest, name: impl Fn() -> String) -> Result<()> {
    let mut hasher = Hasher::default();
    io::copy(&mut artifact, &mut hasher).doing(|| format!("reading {}", name()))?;
    match hasher.digest() {
        found if found == *sha256 => Ok(()),
        found => Err(Error::with(
            ErrorKind::Untrusted,
            format!(
                "reading {}: its digest is {found} instead of {sha256}",
                name()
            ),
        )),
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
