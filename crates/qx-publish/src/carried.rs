//! What lies beside the bytes of a file that is packed. An artifact carries names, bytes, permission bits and, of a `bin`, the
//! capabilities that its recipe names. Whatever else a source has somebody gave it on purpose: it is refused, not dropped.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{getegid, geteuid, getgroups};

use qx_release::manifest::Capabilities;
use qx_release::manifest::capabilities::ATTRIBUTE;
use qx_release::text;
use qx_release::tree;

/// What a file system or the security policy of a machine gives to every file: nobody's purpose.
const OF_THE_MACHINE: [&str; 3] = ["security.selinux", "security.SMACK64", "system.nfs4_acl"];

/// Whose capabilities a `bin` has.
#[derive(Clone, Copy)]
pub(crate) enum Named {
    /// Those that are to be installed: the source has the same, or none.
    ToInstall(Capabilities),
    /// Those that the image's own file must have.
    InTheImage(Capabilities),
}

/// Checks the file of a `bin`. The error goes on after the file's name, as those below.
pub(crate) fn bin(path: &Path, named: Named) -> Result<(), String> {
    let unreadable = |e: io::Error| format!("it cannot be read: {e}");
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let list = |buffer: &mut [u8]| rustix::fs::flistxattr(&file, buffer);
    let others = attributes(&list)?;
    let mut others = others.iter().filter(|name| *name != ATTRIBUTE);
    whole(&metadata, others.next())?;
    let found = tree::capabilities_of(&file)?;
    let (named, good) = match named {
        Named::ToInstall(named) => (named, found.is_none() || found == named),
        Named::InTheImage(named) => (named, found == named),
    };
    match good {
        true => Ok(()),
        false => Err(format!(
            "its file capabilities are: {found}, but `capabilities` in the recipe names: {named}"
        )),
    }
}

/// Checks something in a tree, or a tree's own directory.
pub(crate) fn entry(path: &Path) -> Result<(), String> {
    let metadata = fs::symlink_metadata(path).map_err(|e| format!("it cannot be read: {e}"))?;
    let found = attributes(&|buffer| rustix::fs::llistxattr(path, buffer))?;
    if found.iter().any(|name| name == ATTRIBUTE) {
        return Err(
            "it has file capabilities: a program that needs them is a component of its own, of kind bin, with \
             `capabilities`"
                .into(),
        );
    }
    whole(&metadata, found.first())
}

fn whole(metadata: &Metadata, attribute: Option<&String>) -> Result<(), String> {
    if !metadata.is_symlink() && metadata.mode() & 0o7000 != 0 {
        return Err(
            "it has a setuid, setgid or sticky bit, which is not installed: remove it (chmod a-st)"
                .into(),
        );
    }
    let (uid, gid) = (metadata.uid(), metadata.gid());
    // Whoever has become root by sudo (sudo(8)) works on files of their own.
    let sudo = |variable: &str, id: u32| {
        let given = std::env::var(variable);
        geteuid().is_root() && given.is_ok_and(|given| given.parse() == Ok(id))
    };
    let user = uid == 0 || uid == geteuid().as_raw() || sudo("SUDO_UID", uid);
    let group = || {
        let mut groups = getgroups().unwrap_or_default();
        groups.push(getegid());
        gid == 0 || groups.iter().any(|group| group.as_raw() == gid) || sudo("SUDO_GID", gid)
    };
    if !user || !group() {
        return Err(format!(
            "its owner is {uid}:{gid}, but what is installed belongs to root: give it to root (chown -h root:root), or \
             publish as its owner"
        ));
    }
    match attribute {
        None => Ok(()),
        Some(name) if name.starts_with("system.posix_acl_") => Err(
            "it has an access control list, which is not installed: remove it (setfacl -b)".into(),
        ),
        Some(name) => Err(format!(
            "it has the extended attribute {name}, which is not installed: remove it (setfattr -h -x {name})",
            name = text::name(name)
        )),
    }
}

/// The names of the attributes that somebody gave it.
fn attributes(
    list: &dyn Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> Result<Vec<String>, String> {
    // The kernel's limit (XATTR_LIST_MAX).
    let mut names = vec![0; 65536];
    let length = match list(&mut names) {
        Err(Errno::NOTSUP) => 0,
        length => length.map_err(|e| format!("its extended attributes cannot be listed: {e}"))?,
    };
    let names = names[..length].split(|byte| *byte == 0);
    let names = names.map(|name| String::from_utf8_lossy(name).into_owned());
    let given = |name: &String| !name.is_empty() && !OF_THE_MACHINE.contains(&&**name);
    Ok(names.filter(given).collect())
}
