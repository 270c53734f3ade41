//! `check`: what of a release can be tried before anybody installs it. A recipe says in `checks` what there is to try.

mod migrations;
mod versions;

use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use super::checks::Checks;
use super::current::Current;
use super::recipe::Recipe;
use qx_release::error::{Error, ErrorKind, Result};
use qx_release::manifest::{Kind, Manifest, Name};
use qx_release::text;
use qx_scratch::init_script;

/// What came of the checks, a line each.
#[derive(Debug, Default)]
pub struct Report {
    /// What is wrong.
    pub problems: Vec<String>,
    /// What could not be tried here, and why.
    pub skipped: Vec<String>,
    /// What was tried and is right.
    pub passed: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            ("passed", &self.passed),
            ("skipped", &self.skipped),
            ("problem", &self.problems),
        ];
        for (kind, lines) in all {
            for line in lines {
                writeln!(f, "{kind}: {}", text::line(line))?;
            }
        }
        Ok(())
    }
}

impl Report {
    fn add(&mut self, result: Result<String>) {
        match result {
            Ok(passed) => self.passed.push(passed),
            Err(e) => self.problems.push(e.chain()),
        }
    }
}

/// Tries a recipe's release: its names, the versions that its sources hold, its init scripts and its migrations. What is
/// published in the repository is what its migrations continue.
///
/// # Errors
/// A recipe that is wrong in itself, and a repository that cannot be read.
pub fn check(recipe: &Path, repo: Option<&Path>, now: SystemTime) -> Result<Report> {
    let recipe = Recipe::read(recipe)?;
    let channel: Name = "none".parse().map_err(Error::new)?;
    let manifest = recipe.manifest(&channel, now)?;
    recipe.check_sources()?;
    let current = repo.map(Current::load).transpose()?;
    let mut report = Report::default();
    let checks = &recipe.checks;
    names(checks, &manifest, &mut report);
    for version in &checks.versions {
        report.add(versions::check(version, &manifest.version));
    }
    for script in &checks.init_scripts {
        let service = manifest.services.iter().find(|s| s.name == script.service);
        let service = service.ok_or_else(|| {
            let what = format!(
                "reading the recipe {}: checks.init_scripts: {} is not a service of this release",
                recipe.path.display(),
                script.service
            );
            Error::with(ErrorKind::Usage, what)
        })?;
        let factory = manifest.in_image(service);
        report.add(init_script::check(&script.file, service, &factory));
    }
    if let Some(migrations) = &checks.migrations {
        migrations::check(
            migrations,
            &recipe,
            &manifest,
            current.as_ref(),
            &mut report,
        )?;
    }
    Ok(report)
}

/// The rule that was broken when a whole product's updates were installed and never ran: one name for one program. (That
/// each service runs a component of the release is checked in every manifest.)
fn names(checks: &Checks, manifest: &Manifest, report: &mut Report) {
    let Some(prefix) = &checks.prefix else {
        return;
    };
    let programs = manifest.components.iter().filter(|c| c.kind == Kind::Bin);
    let mut wrong = 0;
    for program in programs {
        let path = program.install_path.as_str();
        let name = path.rsplit('/').next().unwrap_or(path);
        if !name.starts_with(prefix) {
            wrong += 1;
            report.problems.push(format!(
                "component {}: the name of {path} does not begin with {prefix}",
                program.name
            ));
        }
    }
    if wrong == 0 {
        let what = format!("names: every program's name begins with {prefix}");
        report.passed.push(what);
    }
}
