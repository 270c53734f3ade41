//! Whether the files that hold a version hold this one.

use std::fs;

use semver::Version;
use serde_json::Value;

use crate::checks::VersionFile;
use qx_release::error::{Context, Error, Result};
use qx_release::text;

/// Stands for the version in a line.
const VERSION: &str = "{version}";

/// The line, counted from 1, and the version in it.
type Found = (usize, String);

pub(super) fn check(version: &VersionFile, own: &Version) -> Result<String> {
    let file = version.file.display();
    let content = fs::read_to_string(&version.file).doing(|| format!("reading {file}"))?;
    let wrong = |what: String| Error::new(format!("{file}: {what}"));
    let (line, found) = find(version, &content).map_err(wrong)?;
    match found.strip_prefix('v').unwrap_or(&found) == own.to_string() {
        true => Ok(format!("versions: {file}:{line}: {found}")),
        false => Err(Error::new(format!(
            "{file}:{line}: the version is {}, but the recipe's is {own}",
            text::name(&found)
        ))),
    }
}

fn find(version: &VersionFile, content: &str) -> Result<Found, String> {
    let name = version.file.file_name().and_then(|name| name.to_str());
    match (&version.line, name.unwrap_or_default()) {
        (Some(line), _) => by_line(line, content),
        (None, "package.json") => in_json(content),
        (None, "Cargo.toml") => in_cargo(content),
        (None, name) if name.to_ascii_uppercase().starts_with("VERSION") => content
            .lines()
            .enumerate()
            .find(|(_, line)| !line.trim().is_empty())
            .map(|(number, line)| (number + 1, line.trim().to_owned()))
            .ok_or_else(|| "it is empty".to_owned()),
        (None, _) => Err(format!(
            "checks.versions does not say which line has the version: add \"line\", such as \"VERSION := {VERSION}\""
        )),
    }
}

/// The first line that reads so, whatever blanks are in it.
fn by_line(line: &str, content: &str) -> Result<Found, String> {
    let line = blanks(line);
    let (before, after) = line.split_once(VERSION).ok_or_else(|| {
        format!(
            "checks.versions: \"{}\" has no {VERSION}",
            text::name(&line)
        )
    })?;
    let (before, after) = (before.trim_end(), after.trim_start());
    let found = content.lines().enumerate().find_map(|(number, line)| {
        let line = blanks(line);
        let rest = line.strip_prefix(before)?;
        let value = rest.strip_suffix(after)?.trim();
        (!value.is_empty() && !value.contains(' ')).then(|| (number + 1, value.to_owned()))
    });
    found.ok_or_else(|| format!("no line reads \"{}\"", text::name(&line)))
}

fn blanks(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn in_json(content: &str) -> Result<Found, String> {
    let json: Value = serde_json::from_str(content).map_err(|e| e.to_string())?;
    let version = json["version"].as_str();
    let version = version.ok_or("it has no \"version\"")?.to_owned();
    // The parser tells no places: the first line that has both is where people look.
    let quoted = Value::from(version.clone()).to_string();
    let has = |line: &str| line.contains("\"version\"") && line.contains(&quoted);
    let line = content.lines().position(has).unwrap_or_default();
    Ok((line + 1, version))
}

fn in_cargo(content: &str) -> Result<Found, String> {
    let mut ours = false;
    for (number, line) in content.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            ours = matches!(line, "[package]" | "[workspace.package]");
        } else if ours
            && let Some(rest) = line.strip_prefix("version")
            && let Some(value) = rest.trim_start().strip_prefix('=')
            && let Some(value) = value.trim().strip_prefix('"')
            && let Some((value, _)) = value.split_once('"')
        {
            return Ok((number + 1, value.to_owned()));
        }
    }
    Err("its package has no version of its own: name the Cargo.toml of the workspace".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, line: Option<&str>, content: &str) -> Result<Found, String> {
        let file = VersionFile {
            file: name.into(),
            line: line.map(str::to_owned),
        };
        find(&file, content)
    }

    #[test]
    fn a_version_is_found_where_it_usually_is() {
        let makefile = "# VERSION is below\nNAME=x\nVERSION   ?=\t1.2.3\nVERSION ?= 9\n";
        let cargo =
            "[dependencies]\nversion = \"7\"\n[package]\nname = \"x\"\nversion=\"1.2.3\" # now\n";
        let package = "{\n \"name\": \"x\",\n \"version\": \"1.2.3\"\n}";
        for (name, line, content, at) in [
            ("Makefile", Some("VERSION ?= {version}"), makefile, 3),
            (
                "a.h",
                Some("#define V \"{version}\""),
                "\n#define  V  \"1.2.3\"",
                2,
            ),
            ("x/Cargo.toml", None, cargo, 5),
            ("web/package.json", None, package, 3),
            ("VERSION", None, "\n 1.2.3 \n", 2),
            ("version.txt", None, "1.2.3", 1),
        ] {
            let expected = Ok((at, "1.2.3".to_owned()));
            assert_eq!(found(name, line, content), expected, "{name}");
        }
    }

    #[test]
    fn where_there_is_none_is_told() {
        for (name, line, content, word) in [
            ("Makefile", None, "VERSION = 1", "add \"line\""),
            (
                "Makefile",
                Some("VERSION = {version}"),
                "VERSION = $(shell git describe)\n",
                "no line",
            ),
            (
                "Makefile",
                Some("VERSION ="),
                "VERSION = 1\n",
                "has no {version}",
            ),
            ("package.json", None, "{}", "no \"version\""),
            ("package.json", None, "{", "EOF"),
            (
                "Cargo.toml",
                None,
                "[package]\nversion.workspace = true\n",
                "workspace",
            ),
            ("VERSION", None, "\n\n", "empty"),
        ] {
            let error = found(name, line, content).unwrap_err();
            assert!(error.contains(word), "{name}: {error}");
        }
    }
}
