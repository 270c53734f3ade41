//! What differs between two sets.

use qx_release::manifest::{Component, Manifest, Name, Service};

/// The services to restart between two sets, in start order: those whose files differ, those that `restarts` names, and
/// those that only the old set has. Without a manifest to compare with: all.
pub fn changed_services(
    old: Option<&Manifest>,
    new: Option<&Manifest>,
    restarts: &dyn Fn(&Name) -> bool,
) -> Vec<Service> {
    let (Some(old), Some(new)) = (old, new) else {
        let mut all: Vec<Service> = old.or(new).map(|m| m.services.clone()).unwrap_or_default();
        all.sort_by_key(|s| s.order);
        return all;
    };
    let same = |old: Option<&Component>, new: Option<&Component>| {
        let both = old.zip(new);
        both.is_some_and(|(old, new)| old.install_path == new.install_path && old.is_same(new))
    };
    let unchanged = |service: &Service| {
        let before = |s: &&Service| s.name == service.name && s.runs == service.runs;
        !restarts(&service.name)
            && old.services.iter().any(|s| before(&s))
            && same(old.holding(&service.runs), new.holding(&service.runs))
            && service
                .uses
                .iter()
                .all(|name| same(old.component(name), new.component(name)))
    };
    let mut changed: Vec<Service> = new
        .services
        .iter()
        .filter(|s| !unchanged(s))
        .cloned()
        .collect();
    let gone = |s: &&Service| !new.services.iter().any(|n| n.name == s.name);
    changed.extend(old.services.iter().filter(gone).cloned());
    changed.sort_by_key(|s| s.order);
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn manifest(node: &str, ui: &str, console: &str, services: &[&str]) -> Manifest {
        let component = |name: &str, kind: &str, path: &str, content: &str| {
            json!({"name": name, "kind": kind, "install_path": path, "mode": "0755",
                   "sha256": qx_release::digest::Digest::of(content.as_bytes()), "size_bytes": 1, "entries": 1})
        };
        let all = [
            json!({"name": "node", "runs": "bin/node", "uses": ["ui"], "order": 2}),
            json!({"name": "console", "runs": "bin/console", "order": 1}),
        ];
        let services: Vec<_> = all
            .into_iter()
            .filter(|s| services.contains(&s["name"].as_str().unwrap()))
            .collect();
        let text = json!({
            "format": 1, "product": "os", "version": "1.0.0", "arch": "x86_64", "channel": "stable", "released": "",
            "components": [component("node", "bin", "bin/node", node), component("ui", "tree", "share/ui", ui),
                           component("console", "bin", "bin/console", console)],
            "services": services,
        });
        Manifest::parse(&serde_json::to_vec(&text).unwrap()).unwrap()
    }

    /// With another console.
    fn with(change: &dyn Fn(&mut Component)) -> Manifest {
        let mut manifest = manifest("1", "1", "1", &["node", "console"]);
        change(&mut manifest.components[2]);
        manifest
    }

    fn changed(old: Option<&Manifest>, new: Option<&Manifest>) -> Vec<String> {
        changed_services(old, new, &|_| false)
            .iter()
            .map(|s| s.name.to_string())
            .collect()
    }

    #[test]
    fn only_services_whose_components_changed_are_restarted() {
        let both = ["node", "console"];
        let old = manifest("1", "1", "1", &both);
        let capable = with(&|console| {
            let names = vec!["cap_net_raw".to_owned()];
            console.capabilities = names.try_into().unwrap();
        });
        let moded = with(&|console| console.mode = "0700".to_owned().try_into().unwrap());
        let longer = with(&|console| console.size_bytes = 2);
        for (new, expected) in [
            (manifest("1", "1", "1", &both), vec![]),
            (manifest("2", "1", "1", &both), vec!["node"]),
            (manifest("1", "2", "1", &both), vec!["node"]),
            (manifest("1", "1", "2", &both), vec!["console"]),
            (manifest("2", "1", "2", &both), vec!["console", "node"]),
            (manifest("1", "1", "1", &["node"]), vec!["console"]),
            (capable, vec!["console"]),
            (moded, vec!["console"]),
            (longer, vec!["console"]),
        ] {
            assert_eq!(changed(Some(&old), Some(&new)), expected);
        }
        assert_eq!(changed(None, Some(&old)), ["console", "node"]);
        assert_eq!(changed(Some(&old), None), ["console", "node"]);
        let same = manifest("1", "1", "1", &both);
        let console = |name: &Name| name.as_str() == "console";
        let using = changed_services(Some(&old), Some(&same), &console);
        assert_eq!(using.len(), 1, "it uses data that is changed: {using:?}");
    }
}
