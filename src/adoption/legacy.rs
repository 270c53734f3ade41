//! What the updaters that qx-update replaces left on an appliance: their versions, and their configuration. It is read, and never
//! changed here.

use std::fs;

use semver::Version;
use serde::Deserialize;

use crate::store::read_if_there;
use crate::system::host::Host;
use qx_release::error::{Error, ErrorKind, Result};
use qx_release::json;
use qx_release::manifest::Name;
use qx_release::text;

/// Where versions are recorded, one for the whole appliance; the first that is there counts.
const VERSIONS: [&str; 3] = [
    "/var/lib/quantix-vdc/version",
    "/etc/quantix-vdc/version",
    "/etc/quantix-vdc-release",
];
/// Where the version of each component is recorded.
const OF_COMPONENTS: &str = "/data/versions";
/// The configuration of a Quantix-vDC.
const VDC: &str = "/etc/quantix-vdc/update.json";
/// The configuration of a Quantix-OS node, of which one section is the updater's.
const NODE: &str = "/etc/limiquantix/node.yaml";
/// No such file is longer, in bytes.
const LIMIT: u64 = 1 << 16;

/// The version that was recorded, and the file that it was recorded in: the appliance's, else the newest of its components'.
pub fn version(host: &Host, components: &[&Name]) -> Option<(Version, String)> {
    let recorded = |path: String| {
        let bytes = read_if_there(&host.path(&path).ok()?, LIMIT).ok()??;
        Some((version_in(&String::from_utf8_lossy(&bytes))?, path))
    };
    let whole = VERSIONS
        .into_iter()
        .find_map(|path| recorded(path.to_owned()));
    let each = components
        .iter()
        .filter_map(|name| recorded(format!("{OF_COMPONENTS}/{name}.version")));
    whole.or_else(|| each.max_by(|(one, _), (other, _)| one.cmp_precedence(other)))
}

/// The first word that is a version: `1.2.3`, `v1.2.3` or `VERSION="1.2.3"`.
fn version_in(file: &str) -> Option<Version> {
    let words = file.split(|c: char| c.is_whitespace() || c == '=' || c == '"');
    words
        .filter_map(|word| word.strip_prefix('v').unwrap_or(word).parse().ok())
        .next()
}

/// A configuration for qx-update (`docs/formats.md`) that says what the one of the replaced updater does; `None` if there is none.
/// With the file that it comes from.
///
/// # Errors
/// It cannot be read, or lacks what cannot be guessed.
pub fn config(host: &Host) -> Result<Option<(serde_json::Value, &'static str)>> {
    let found = match file(host, VDC)? {
        Some(text) => Some((vdc(&text), VDC)),
        None => file(host, NODE)?.map(|text| (node(&text), NODE)),
    };
    let Some((said, path)) = found else {
        return Ok(None);
    };
    let said = said.map_err(|why| {
        let what = format!("reading the configuration of the updater before, {path}: {why}");
        Error::with(ErrorKind::Usage, what)
    })?;
    let versions = match path {
        VDC => VERSIONS[0].to_owned(),
        _ => format!("{OF_COMPONENTS}/{{component}}.version"),
    };
    let config = serde_json::json!({
        "format": 1,
        "product": said.product,
        "channel": said.channel,
        "sources": [said.source],
        "data_dir": said.data_dir.unwrap_or_else(|| "/data".into()),
        // Programs of the appliance read them.
        "version_files": [versions],
    });
    Ok(Some((config, path)))
}

fn file(host: &Host, path: &str) -> Result<Option<String>> {
    let bytes = read_if_there(&host.path(path)?, LIMIT).map_err(|e| e.of(ErrorKind::Usage))?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// What of it still means something. When to look for releases is cron's matter.
struct Said {
    product: &'static str,
    channel: String,
    source: String,
    data_dir: Option<String>,
}

fn vdc(text: &str) -> Result<Said, String> {
    #[derive(Deserialize)]
    struct Fields {
        server_url: String,
        channel: Option<String>,
        data_dir: Option<String>,
    }
    let fields: Fields = json::parse(text.as_bytes())?;
    Ok(Said {
        product: "quantix-vdc",
        channel: fields.channel.unwrap_or_else(|| "stable".into()),
        source: fields.server_url,
        data_dir: fields.data_dir,
    })
}

/// The scalars in the section `updates` of a YAML file: all of YAML that this section uses.
fn node(text: &str) -> Result<Said, String> {
    let section = text
        .lines()
        .skip_while(|line| line.trim_end() != "updates:")
        .skip(1);
    let inside =
        section.take_while(|line| line.trim().is_empty() || line.starts_with([' ', '\t', '#']));
    let (mut source, mut channel) = (None, None);
    for line in inside {
        let Some((key, value)) = line.trim().split_once(':') else {
            continue;
        };
        let value = value.split(" #").next().unwrap_or_default().trim();
        let value = value.trim_matches(['"', '\'']).to_owned();
        match key {
            "server_url" | "server" | "url" => source = Some(value),
            "channel" => channel = Some(value),
            _ => {}
        }
    }
    Ok(Said {
        product: "quantix-os",
        channel: channel.unwrap_or_else(|| "stable".into()),
        source: source.ok_or("its section `updates` has no server_url")?,
        data_dir: None,
    })
}

/// Writes the version of what runs where programs of the appliance look for it. What stands there already is left alone.
///
/// # Errors
/// One of the files cannot be written.
pub fn write_versions(
    host: &Host,
    files: &[String],
    version: &Version,
    components: &[Name],
) -> Result<()> {
    for file in files {
        let paths = match file.contains("{component}") {
            true => components
                .iter()
                .map(|name| file.replace("{component}", name.as_str()))
                .collect(),
            false => vec![file.clone()],
        };
        for path in paths {
            write_version(host, &path, version)?;
        }
    }
    Ok(())
}

fn write_version(host: &Host, path: &str, version: &Version) -> Result<()> {
    let line = format!("{version}\n");
    let place = host.path(path)?;
    if fs::read_to_string(&place).is_ok_and(|there| there == line) {
        return Ok(());
    }
    let parent = std::path::Path::new(path)
        .parent()
        .unwrap_or(std::path::Path::new("/"));
    let (_open, directory) = host.make_directory(parent)?;
    let name = place
        .file_name()
        .ok_or_else(|| Error::new(format!("writing {}: it has no name", text::name(path))))?;
    qx_release::durable::write_with_mode(&directory.join(name), line.as_bytes(), 0o644)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_in_whatever_form_it_was_written() {
        for (text, version) in [
            ("1.2.3\n", Some("1.2.3")),
            ("v1.2.3", Some("1.2.3")),
            (
                "NAME=\"Quantix vDC\"\nVERSION=\"1.4.0-rc.1\"\n",
                Some("1.4.0-rc.1"),
            ),
            ("Quantix-vDC 2.0.0 (build 7)\n", Some("2.0.0")),
            ("", None),
            ("unknown\n", None),
            ("1.2\n", None),
        ] {
            assert_eq!(
                version_in(text),
                version.map(|v| v.parse().unwrap()),
                "{text:?}"
            );
        }
    }

    #[test]
    fn the_section_of_a_node_is_read_and_no_other() {
        let text = "node:\n  server_url: http://wrong\nupdates:\n  # the channel\n  server_url: \"https://u.example.com/os\"\n\n  \
                    channel: beta # for now\n  check_interval: 1h\nother:\n  channel: wrong\n";
        let said = node(text).unwrap();
        assert_eq!(
            (said.source.as_str(), said.channel.as_str()),
            ("https://u.example.com/os", "beta")
        );
        assert!(node("updates:\n  channel: beta\n").is_err());
        assert!(node("").is_err());
    }
}
