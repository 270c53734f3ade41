//! What the sources offer, as far as they are to be believed.

use qx_release::durable;
use qx_release::error::{Context, Error, ErrorKind, Exit, Result};

use super::{Appliance, CameOn, machine, running};
use crate::acquire::select::{self, Choice, Request};
use crate::fetch::{Headers, Mirrors, Options, Patience, Proxies};
use crate::model::phase::Phase;
use crate::model::record::Record;
use crate::model::slot::{Installed, Set};
use crate::model::source::SourceAddress;
use crate::repository::{Releases, Repository, Wanted};
use crate::store::{self, Freshness, Lock, Refreshed, WithdrawnNote};
use crate::system::host;

impl Appliance {
    /// Step 2, first half: trust.
    pub(super) fn refresh(
        &mut self,
        lock: &Lock,
        from: Option<&SourceAddress>,
    ) -> Result<(Repository, Mirrors)> {
        let root_path = self.host.path(&self.config.trust_root)?;
        let root = store::read_if_there(&root_path, 1 << 20)?.ok_or_else(|| {
            Error::with(
                ErrorKind::Usage,
                format!(
                    "reading the trust root {}: it does not exist",
                    root_path.display()
                ),
            )
        })?;
        let sources = match from {
            Some(from) => vec![from.clone()],
            None => self.config.sources.clone(),
        };
        let options = self.options(&sources)?;
        let sources = sources.into_iter().map(|source| match source {
            SourceAddress::Path(path) => {
                let path = self.host.path(&path)?.display().to_string();
                Ok(SourceAddress::Path(path))
            }
            other => Ok(other),
        });
        let sources = sources.collect::<Result<Vec<_>>>()?;
        if let Some(SourceAddress::Medium(medium)) = from {
            self.medium = Some(CameOn {
                device: medium.device.clone(),
                named: true,
            });
        }
        let mirrors = Mirrors::new(sources, &options, &self.host, lock.share()?)?;
        let (store, clock) = (self.store.path("update/trust"), options.clock);
        let limits = &self.config.limits.trust;
        let refreshed =
            mirrors.refresh(|mirrors| Repository::refresh(mirrors, &store, &root, clock, limits));
        self.warn("trust", &mirrors);
        let repository = match refreshed {
            // The source has no part in it.
            Err(e) if e.kind == ErrorKind::Usage => {
                Err(e).doing(|| format!("starting from {}", root_path.display()))
            }
            refreshed => refreshed,
        }?;
        self.note_trust(&repository, &mirrors);
        if let (Some(device), None) = (mirrors.medium(), &self.medium) {
            self.medium = Some(CameOn {
                device,
                named: false,
            });
        }
        Ok((repository, mirrors))
    }

    /// Says, and leaves for `status`, what is trusted now and how fresh that is.
    fn note_trust(&mut self, repository: &Repository, mirrors: &Mirrors) {
        let v = repository.versions();
        self.log.info(
            "trust",
            format!(
                "{} is trusted: root {}, timestamp {}, snapshot {}, targets {}",
                mirrors.name(),
                v.root,
                v.timestamp,
                v.snapshot,
                v.targets
            ),
        );
        let clock = repository.clock();
        let freshness = if clock.is_believed() {
            Freshness::Verified
        } else {
            self.log.warning(
                "trust",
                format!(
                    "freshness not verified: system clock {} is implausible; using {} (latest trusted time)",
                    host::timestamp(clock.system()),
                    host::timestamp(clock.now())
                ),
            );
            Freshness::NotVerified
        };
        let noted = self.store.write_refreshed(&Refreshed {
            time: host::timestamp(clock.now()),
            source: mirrors.name(),
            freshness,
            clock: host::timestamp(clock.system()),
            trust: v,
        });
        if let Err(e) = noted {
            self.log.warning("trust", e.chain());
        }
    }

    /// How these sources are asked.
    fn options(&self, sources: &[SourceAddress]) -> Result<Options> {
        let config = &self.config;
        let is_web = |source: &SourceAddress| matches!(source, SourceAddress::Url(_));
        let web = sources.iter().any(is_web);
        let proxies = match &config.proxy {
            _ if !web => Proxies::default(),
            Some(proxy) => Proxies::configured(proxy.url.as_deref(), &proxy.no_proxy)?,
            None => Proxies::from_environment(|name| std::env::var(name).ok()),
        };
        // For the configured sources only: what a person names is not necessarily entitled to them.
        let entitled = |source: &SourceAddress| is_web(source) && config.sources.contains(source);
        let headers = match &config.headers_file {
            Some(file) if sources.iter().any(entitled) => Headers::read(&self.host.path(file)?)?,
            _ => Headers::default(),
        };
        Ok(Options {
            ca_file: config
                .ca_file
                .as_deref()
                .map(|path| self.host.path(path))
                .transpose()?,
            clock: self.host.clock(),
            proxies,
            headers,
            patience: Patience::from(&config.limits),
        })
    }

    fn warn(&mut self, step: &str, mirrors: &Mirrors) {
        for warning in mirrors.take_warnings() {
            self.log.warning(step, warning);
        }
    }

    /// Step 2, second half: what is offered to this appliance.
    pub(super) fn releases(
        &mut self,
        repository: &Repository,
        mirrors: &Mirrors,
        request: &Request,
    ) -> Result<Releases> {
        let found = repository.releases(
            mirrors,
            &Wanted {
                product: &self.config.product,
                channel: &self.config.channel,
                arch: &machine()?,
                version: request.version.as_ref(),
            },
        );
        if let Ok(found) = &found {
            for why in &found.left_out {
                self.log.warning("select", why.clone());
            }
        }
        self.warn("select", mirrors);
        found
    }

    /// What its publisher has taken back is not switched to if it is staged; if it runs, that is noted for `status`. Returns the
    /// record as it is then.
    pub(super) fn heed_withdrawals(&mut self, found: &Releases, record: &Record) -> Result<Record> {
        let of = |installed: &Installed| {
            let mut withdrawn = found.withdrawn.iter();
            withdrawn.find(|w| w.manifest.is_some() && w.manifest == installed.manifest)
        };
        let runs = running(record);
        let note = of(&runs).zip(runs.manifest);
        let note = note.map(|(withdrawn, manifest)| WithdrawnNote {
            manifest,
            what: format!("{runs} runs, but {withdrawn}"),
        });
        self.store.write_withdrawn(note.as_ref())?;
        let Phase::Staged { op } = record.phase() else {
            return Ok(record.clone());
        };
        let Some(withdrawn) = of(&op.to) else {
            return Ok(record.clone());
        };
        let why = format!("{} is staged, but {withdrawn}", op.to);
        let now = self.host.timestamp();
        let ended = op.attempt(Exit::Refused, Some(why.clone()), &now);
        let ended = record.ended(op.back(), ended)?;
        self.store.save(&ended)?;
        self.log.warning("select", format!("{why}; deleting it"));
        if let Some(slot) = op.to.set.slot() {
            durable::remove_tree(&self.store.slot(slot))?;
        }
        Ok(ended)
    }

    /// The release to install, of those that were found.
    pub(super) fn select(
        &mut self,
        repository: &Repository,
        mirrors: &Mirrors,
        mut found: Releases,
        record: &Record,
        request: &Request,
    ) -> Result<Choice> {
        let refusals = self.store.refusals()?;
        // Which paths a release must have is not known without it.
        let factory = self.store.manifest(Set::Factory)?;
        let active = running(record);
        let unknown = self.unknown_data(record)?;
        for withdrawn in &found.withdrawn {
            let version = &withdrawn.offer.version;
            if active.version.as_ref().is_none_or(|runs| version > runs) {
                let what = format!("{version} is left out: {withdrawn}");
                self.log.info("select", what);
            }
        }
        // Whoever has it keeps it: that it was damaged changes nothing.
        let lost = found.withdrawn.iter().filter(|_| request.only.is_some());
        let lost = lost.filter(|withdrawn| withdrawn.manifest == request.only);
        found
            .offers
            .extend(lost.map(|withdrawn| withdrawn.offer.clone()));
        let context = select::SelectionContext {
            product: &self.config.product,
            channel: &self.config.channel,
            arch: &machine()?,
            running: &active,
            schemas: &record.schemas,
            unknown: &unknown,
            refusals: &refusals,
            factory: factory.as_ref().map(|(manifest, _)| manifest),
            declared: &self.config.data,
            withdrawn: &found.withdrawn,
        };
        let choice = select::select(&context, request, &found.offers, &mut |offer| {
            repository.manifest(mirrors, offer)
        });
        self.warn("select", mirrors);
        choice
    }
}
