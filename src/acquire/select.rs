//! Which release: the highest one that this appliance may install. Pure, but for the manifests, which the caller gets.

use crate::model::fit::{Fit, refuses_unknown};
use crate::repository::{Candidate, Withdrawn};
use std::collections::BTreeMap;

use semver::Version;

use crate::model::dataplan::DataPlan;
use crate::model::dataset::DataSet;
use crate::model::refusal::{Refusal, RefusalKind};
use crate::model::slot::Installed;
use qx_release::digest::Digest;
use qx_release::error::{Error, ErrorKind, Result};
use qx_release::manifest::{Manifest, Name, RelPath};
use qx_release::offer::Offer;

/// What the choice depends on.
pub struct SelectionContext<'a> {
    /// The appliance's product.
    pub product: &'a Name,
    /// The channel that it follows.
    pub channel: &'a Name,
    /// Its architecture.
    pub arch: &'a Name,
    /// What runs.
    pub running: &'a Installed,
    /// The schema number of each data set.
    pub schemas: &'a BTreeMap<Name, u64>,
    /// The data sets that are there, and whose schema nobody knows.
    pub unknown: &'a [Name],
    /// What is not tried again.
    pub refusals: &'a [Refusal],
    /// The factory set's manifest, if there is one.
    pub factory: Option<&'a Manifest>,
    /// The data that may be migrated.
    pub declared: &'a [DataSet],
    /// What is not offered any more.
    pub withdrawn: &'a [Withdrawn],
}

/// What was asked for.
#[derive(Debug, Default)]
pub struct Request {
    /// Only this version.
    pub version: Option<Version>,
    /// Even if it is quarantined or held.
    pub retry: bool,
    /// Only the release whose manifest this is, even if it is not newer than what runs; without a migration.
    pub only: Option<Digest>,
}

/// The outcome.
#[derive(Debug)]
pub enum Choice {
    /// Nothing is newer than this, which runs.
    NothingNewer(Installed),
    /// This one.
    Take(Box<Candidate>),
}

/// Chooses. `manifest` gets the manifest of an offer, or says why what was signed is none; it is asked from the highest
/// version down, until one is eligible. A manifest that cannot be had ends the choice: whoever stands between the appliance
/// and the repository must not be able to have an older release chosen by spoiling the newest.
///
/// # Errors
/// [`ErrorKind::NotEligible`] if newer releases exist and none is eligible, with each one's reason; what `manifest` says if a
/// transfer failed.
pub fn select(
    context: &SelectionContext,
    request: &Request,
    offers: &[Offer],
    manifest: &mut dyn FnMut(&Offer) -> Result<Result<Candidate, String>>,
) -> Result<Choice> {
    let running = context.running;
    if let Some(version) = &request.version
        && request.only.is_none()
    {
        check_request(version, context, offers)?;
    }
    // A repository may serve several products, architectures and channels: those of others say nothing to this appliance,
    // unless there are no others.
    let any_ours = offers
        .iter()
        .any(|offer| not_for_this_appliance(context, offer).is_none());
    let wanted = |offer: &&Offer| match &request.version {
        Some(version) => offer.version == *version,
        None => !any_ours || not_for_this_appliance(context, offer).is_none(),
    };
    let newer = |offer: &&Offer| match &running.version {
        _ if request.only.is_some() => true,
        Some(version) => offer.version.cmp_precedence(version).is_gt(),
        None => true,
    };
    let mut newest_first: Vec<&Offer> = offers.iter().filter(wanted).filter(newer).collect();
    newest_first.sort_by(|x, y| {
        y.version
            .cmp(&x.version)
            .then_with(|| x.target.cmp(&y.target))
    });
    if newest_first.is_empty() {
        return Ok(Choice::NothingNewer(running.clone()));
    }
    let mut reasons = Vec::new();
    for offer in newest_first {
        let found = match not_for_this_appliance(context, offer) {
            Some(why) => Err(why),
            None => {
                manifest(offer)?.and_then(|candidate| match refuse(context, request, &candidate) {
                    None => Ok(candidate),
                    Some(why) => Err(why),
                })
            }
        };
        match found {
            Ok(candidate) => return Ok(Choice::Take(Box::new(candidate))),
            Err(why) => reasons.push(format!("{} is refused: {why}", offer.version)),
        }
    }
    Err(Error::with(
        ErrorKind::NotEligible,
        format!(
            "choosing a release newer than {running}: {}",
            reasons.join("; ")
        ),
    ))
}

fn check_request(version: &Version, context: &SelectionContext, offers: &[Offer]) -> Result<()> {
    let refused = |why: String| {
        Err(Error::with(
            ErrorKind::NotEligible,
            format!("choosing release {version}: {why}"),
        ))
    };
    if !offers.iter().any(|offer| offer.version == *version) {
        let mut withdrawn = context.withdrawn.iter();
        return refused(match withdrawn.find(|w| w.offer.version == *version) {
            Some(withdrawn) => withdrawn.to_string(),
            None => "the repository does not offer it".into(),
        });
    }
    match &context.running.version {
        Some(running) if version.cmp_precedence(running).is_lt() => refused(format!(
            "it is older than the running {}; use `qx-update rollback` to go back",
            context.running
        )),
        _ => Ok(()),
    }
}

fn not_for_this_appliance(context: &SelectionContext, offer: &Offer) -> Option<String> {
    for (what, theirs, ours) in [
        ("product", &offer.product, context.product),
        ("architecture", &offer.arch, context.arch),
        ("channel", &offer.channel, context.channel),
    ] {
        if theirs != ours {
            return Some(format!(
                "it is for {what} {theirs}, but this appliance's {what} is {ours}"
            ));
        }
    }
    None
}

/// Why a release must not be installed here, if so.
fn refuse(context: &SelectionContext, request: &Request, candidate: &Candidate) -> Option<String> {
    let Candidate {
        manifest, digest, ..
    } = candidate;
    if let Some(only) = request.only {
        let why = "it is not the release that was installed here";
        return (only != *digest).then(|| why.to_owned());
    }
    if let Some(min) = &manifest.min_version {
        let old = match &context.running.version {
            Some(running) => running.cmp_precedence(min).is_lt(),
            None => true,
        };
        if old {
            return Some(format!(
                "it requires at least {min} to be running, but {} is running",
                context.running
            ));
        }
    }
    if let Fit::Never(why) = Fit::of(manifest, context.schemas) {
        return Some(why);
    }
    if let Some(why) = refuses_unknown(manifest, context.unknown) {
        return Some(why);
    }
    if let Err(why) = DataPlan::forward(manifest, context.schemas, context.declared) {
        return Some(why);
    }
    if let Some(missing) = lacks(context, manifest) {
        return Some(missing);
    }
    let refusal = context.refusals.iter().find(|r| r.manifest == *digest)?;
    if request.retry {
        return None;
    }
    let kind = match refusal.kind {
        RefusalKind::Quarantined => "quarantined",
        RefusalKind::Held => "held",
    };
    Some(format!(
        "it is {kind} since {}: {} (`qx-update apply {} --retry` tries it again)",
        refusal.at, refusal.reason, manifest.version
    ))
}

/// Init scripts take the factory's file where a release has none: a release must have each, or say that it is gone.
fn lacks(context: &SelectionContext, manifest: &Manifest) -> Option<String> {
    let has = |path: &RelPath| manifest.at(path).is_some() || manifest.removed.contains(path);
    let missing = context
        .factory?
        .components
        .iter()
        .find(|c| !has(&c.install_path))?;
    Some(format!(
        "it neither contains nor removes {}; the factory copy would keep running",
        missing.install_path
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::slot::Set;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn manifest(version: &str, min: Option<&str>, paths: &[&str]) -> Manifest {
        let components: Vec<serde_json::Value> = paths
            .iter()
            .map(|path| {
                serde_json::json!({
                    "name": path.replace('/', "-"), "kind": "bin", "install_path": path, "mode": "0755",
                    "sha256": Digest::of(version.as_bytes()), "size_bytes": 1, "entries": 1,
                })
            })
            .collect();
        let mut text = serde_json::json!({
            "format": 1, "product": "vdc", "version": version, "arch": "x86_64", "channel": "stable",
            "released": "2026-01-01T00:00:00Z", "components": components,
            "data": [{"name": "db", "accepts_from": 1, "accepts_to": 3, "schema_after": 3}],
        });
        if let Some(min) = min {
            text["min_version"] = min.into();
        }
        Manifest::parse(&serde_json::to_vec(&text).unwrap()).unwrap()
    }

    fn offer(product: &str, channel: &str, arch: &str, version: &str) -> Offer {
        let target: RelPath = format!("{product}/{channel}/{arch}/{version}/release.json")
            .parse()
            .unwrap();
        Offer::of(&target).unwrap()
    }

    fn running(version: &str) -> Installed {
        Installed {
            set: Set::A,
            version: Some(version.parse().unwrap()),
            manifest: None,
        }
    }

    struct World {
        running: Installed,
        schemas: BTreeMap<Name, u64>,
        refusals: Vec<Refusal>,
        factory: Option<Manifest>,
        min: Option<&'static str>,
    }

    impl World {
        fn new() -> World {
            World {
                running: running("1.0.0"),
                schemas: BTreeMap::new(),
                refusals: Vec::new(),
                factory: None,
                min: None,
            }
        }

        fn select(&self, offers: &[Offer], request: &Request) -> Result<Choice> {
            let context = SelectionContext {
                product: &name("vdc"),
                channel: &name("stable"),
                arch: &name("x86_64"),
                running: &self.running,
                schemas: &self.schemas,
                unknown: &[],
                refusals: &self.refusals,
                factory: self.factory.as_ref(),
                declared: &[],
                withdrawn: &[],
            };
            select(&context, request, offers, &mut |offer| {
                let min = self.min.filter(|_| offer.version.major == 2);
                let manifest = manifest(&offer.version.to_string(), min, &["bin/qx-node"]);
                let digest = Digest::of(offer.version.to_string().as_bytes());
                Ok(Ok(Candidate {
                    manifest,
                    bytes: Vec::new(),
                    digest,
                }))
            })
        }

        fn taken(&self, offers: &[Offer]) -> String {
            match self.select(offers, &Request::default()) {
                Ok(Choice::Take(candidate)) => candidate.manifest.version.to_string(),
                Ok(Choice::NothingNewer(_)) => "nothing newer".into(),
                Err(e) => {
                    assert_eq!(e.kind, ErrorKind::NotEligible);
                    e.chain()
                }
            }
        }
    }

    fn ours(versions: &[&str]) -> Vec<Offer> {
        versions
            .iter()
            .map(|v| offer("vdc", "stable", "x86_64", v))
            .collect()
    }

    #[test]
    fn the_highest_eligible_release_is_taken() {
        let world = World::new();
        assert_eq!(
            world.taken(&ours(&["1.1.0", "1.10.0", "1.9.0", "0.9.0"])),
            "1.10.0"
        );
        assert_eq!(world.taken(&ours(&["1.0.0", "0.9.0"])), "nothing newer");
        assert_eq!(world.taken(&ours(&["1.0.0+build.2"])), "nothing newer");
        assert_eq!(world.taken(&[]), "nothing newer");
    }

    #[test]
    fn what_is_not_for_this_appliance_is_refused_with_its_reason() {
        let world = World::new();
        for (other, words) in [
            (offer("os", "stable", "x86_64", "2.0.0"), "product os"),
            (offer("vdc", "beta", "x86_64", "2.0.0"), "channel beta"),
            (
                offer("vdc", "stable", "aarch64", "2.0.0"),
                "architecture aarch64",
            ),
        ] {
            let reason = world.taken(std::slice::from_ref(&other));
            assert!(
                reason.contains(words) && reason.contains("2.0.0 is refused"),
                "{reason}"
            );
            let mut with_ours = ours(&["1.1.0"]);
            with_ours.push(other.clone());
            assert_eq!(world.taken(&with_ours), "1.1.0");
            let mut up_to_date = ours(&["1.0.0"]);
            up_to_date.push(other);
            assert_eq!(world.taken(&up_to_date), "nothing newer");
            let request = Request {
                version: Some("2.0.0".parse().unwrap()),
                retry: false,
                only: None,
            };
            let error = world.select(&up_to_date, &request).unwrap_err();
            assert!(
                error.chain().contains(words),
                "asked for by name: {}",
                error.chain()
            );
        }
    }

    #[test]
    fn a_stepping_stone_is_found() {
        let mut world = World::new();
        world.min = Some("1.5.0");
        assert_eq!(world.taken(&ours(&["2.0.0", "1.5.0"])), "1.5.0");
        assert!(world.taken(&ours(&["2.0.0"])).contains("at least 1.5.0"));
        world.running = running("1.5.0");
        assert_eq!(world.taken(&ours(&["2.0.0", "1.5.0"])), "2.0.0");
    }

    #[test]
    fn a_refused_release_is_tried_again_only_by_name_and_retry() {
        let mut world = World::new();
        world.refusals.push(Refusal {
            manifest: Digest::of(b"2.0.0"),
            version: None,
            kind: RefusalKind::Quarantined,
            reason: "it crashed".into(),
            at: "2026-01-01T00:00:00Z".into(),
        });
        let reason = world.taken(&ours(&["2.0.0"]));
        assert!(
            reason.contains("quarantined") && reason.contains("it crashed"),
            "{reason}"
        );
        assert_eq!(
            world.taken(&ours(&["2.0.0", "1.9.0"])),
            "1.9.0",
            "a hotfix below it"
        );
        let mut request = Request {
            version: Some("2.0.0".parse().unwrap()),
            retry: false,
            only: None,
        };
        assert!(world.select(&ours(&["2.0.0"]), &request).is_err());
        request.retry = true;
        assert!(matches!(
            world.select(&ours(&["2.0.0"]), &request),
            Ok(Choice::Take(_))
        ));
    }

    #[test]
    fn a_named_version_must_exist_and_be_no_step_back() {
        let world = World::new();
        for (version, words) in [("0.9.0", "is older than"), ("3.0.0", "does not offer it")] {
            let request = Request {
                version: Some(version.parse().unwrap()),
                retry: false,
                only: None,
            };
            let error = world
                .select(&ours(&["0.9.0", "1.1.0"]), &request)
                .unwrap_err();
            assert!(error.chain().contains(words), "{}", error.chain());
            assert_eq!(error.kind, ErrorKind::NotEligible);
        }
    }

    #[test]
    fn a_release_must_have_every_path_of_the_factory_set() {
        let mut world = World::new();
        world.factory = Some(manifest("1.0.0", None, &["bin/qx-node", "bin/qx-console"]));
        let reason = world.taken(&ours(&["2.0.0"]));
        assert!(reason.contains("bin/qx-console"), "{reason}");
        world.factory = Some(manifest("1.0.0", None, &["bin/qx-node"]));
        assert_eq!(world.taken(&ours(&["2.0.0"])), "2.0.0");
    }

    #[test]
    fn data_that_a_release_does_not_accept_refuses_it() {
        let mut world = World::new();
        for (schema, taken) in [(0, false), (1, true), (3, true), (4, false)] {
            world.schemas.insert(name("db"), schema);
            assert_eq!(
                world.taken(&ours(&["2.0.0"])) == "2.0.0",
                taken,
                "schema {schema}"
            );
        }
    }
}
