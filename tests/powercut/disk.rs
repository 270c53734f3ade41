//! A disk in memory that notes every write and every flush, and can be as it was at any moment. It is a file of a file system in
//! user space; the kernel's loop device makes a block device of it, past every cache of its own.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use rustix::fs::OFlags;

/// What a cut never divides.
pub const SECTOR: usize = 512;
/// How content is kept.
const BLOCK: usize = 4096;

/// What is on a disk: blocks by their numbers; all others are zero.
#[derive(Clone, Default)]
pub struct Content(HashMap<u64, Arc<[u8; BLOCK]>>);

impl Content {
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let (number, within) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
            let length = rest.len().min(BLOCK - within);
            let block = self.0.entry(number).or_insert_with(|| Arc::new([0; BLOCK]));
            Arc::make_mut(block)[within..within + length].copy_from_slice(&rest[..length]);
            at += length as u64;
            rest = &rest[length..];
        }
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        let mut at = offset;
        let mut done = 0;
        while done < into.len() {
            let (number, within) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
            let length = (into.len() - done).min(BLOCK - within);
            match self.0.get(&number) {
                Some(block) => {
                    into[done..done + length].copy_from_slice(&block[within..within + length])
                }
                None => into[done..done + length].fill(0),
            }
            at += length as u64;
            done += length;
        }
    }

    /// The same for equal content that began as the same.
    pub fn fingerprint(&self, of: &[u64]) -> u128 {
        of.iter().fold(0, |sum, number| {
            let empty = [0; BLOCK];
            let block = self.0.get(number).map_or(&empty, |block| &**block);
            sum ^ hash(*number, block)
        })
    }

    /// The numbers of the blocks that a write touches.
    pub fn touched(offset: u64, length: usize) -> impl Iterator<Item = u64> {
        offset / BLOCK as u64..=(offset + length as u64 - 1) / BLOCK as u64
    }
}

fn hash(number: u64, block: &[u8; BLOCK]) -> u128 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let half = |seed: u64| {
        let mut hasher = DefaultHasher::new();
        (seed, number).hash(&mut hasher);
        block.hash(&mut hasher);
        hasher.finish()
    };
    u128::from(half(1)) << 64 | u128::from(half(2))
}

/// What happened to a disk.
#[derive(Debug, Clone)]
pub enum Event {
    Write {
        offset: u64,
        data: Vec<u8>,
    },
    /// Everything that was written before is on the medium.
    Flush,
}

#[derive(Default)]
struct State {
    content: Content,
    log: Option<Vec<Event>>,
    lies_about: Option<Vec<u8>>,
}

/// The disk, and the block device that it is.
pub struct Disk {
    state: Arc<Mutex<State>>,
    directory: tempfile::TempDir,
    _session: BackgroundSession,
}

impl Disk {
    pub fn new(bytes: u64) -> Disk {
        let state = Arc::<Mutex<State>>::default();
        let directory = tempfile::tempdir().unwrap();
        let served = Served {
            state: Arc::clone(&state),
            bytes,
        };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("powercut".into()), MountOption::RW];
        let session = fuser::spawn_mount(served, directory.path(), &config)
            .expect("FUSE is not there: these tests need /dev/fuse and root");
        Disk {
            state,
            directory,
            _session: session,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn content(&self) -> Content {
        self.state().content.clone()
    }

    pub fn set(&self, content: Content) {
        self.state().content = content;
    }

    /// Writes it to a file, for whoever wants to look.
    pub fn save(&self, file: &Path) {
        let mut cp = Command::new("cp");
        run(cp
            .arg("--sparse=always")
            .arg(self.directory.path().join(NAME))
            .arg(file));
    }

    /// From here on it is noted what happens.
    pub fn record(&self) {
        self.state().log = Some(Vec::new());
    }

    pub fn recorded(&self) -> Vec<Event> {
        self.state().log.take().unwrap()
    }

    /// From here on it keeps something else than what is written, by a bit, where this is written; and says that all is well.
    pub fn lies_about(&self, what: Option<&[u8]>) {
        self.state().lies_about = what.map(<[u8]>::to_vec);
    }

    /// Makes a block device of it.
    pub fn attach(&self) -> Device {
        let file = self.directory.path().join(NAME);
        let out = run(Command::new("losetup")
            .args(["--find", "--show", "--direct-io=on"])
            .arg(file));
        Device(PathBuf::from(out.trim()))
    }
}

/// A loop device, as long as it lives.
pub struct Device(PathBuf);

impl Device {
    pub fn format(&self, file_system: &FileSystem) {
        let mut command = Command::new(file_system.mkfs[0]);
        run(command.args(&file_system.mkfs[1..]).arg(&self.0));
    }

    pub fn mount<'d>(&'d self, place: &Path, file_system: &FileSystem) -> Mounted<'d> {
        self.try_mount(place, file_system)
            .expect("it can be mounted")
    }

    /// None if the file system is beyond what its journal mends.
    pub fn try_mount<'d>(&'d self, place: &Path, file_system: &FileSystem) -> Option<Mounted<'d>> {
        let mut command = Command::new("mount");
        command.args(["-t", file_system.kind, "-o", file_system.options]);
        let out = command.arg(&self.0).arg(place).output().unwrap();
        out.status
            .success()
            .then(|| Mounted(place.to_owned(), self))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        run(Command::new("losetup").arg("-d").arg(&self.0));
    }
}

/// A mounted file system, as long as it lives.
pub struct Mounted<'d>(PathBuf, &'d Device);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // Whoever looked at it may not be gone yet.
        let gone = patiently(|| {
            let out = Command::new("umount").arg(&self.0).output();
            out.is_ok_and(|out| out.status.success())
        });
        // Programs that saw it in mount namespaces of their own may keep it a moment longer: it is gone when its device can be had
        // alone.
        let exclusive = OFlags::EXCL.bits() as i32;
        let alone = patiently(|| {
            let mut options = OpenOptions::new();
            options
                .read(true)
                .custom_flags(exclusive)
                .open(&self.1.0)
                .is_ok()
        });
        if !std::thread::panicking() {
            assert!(gone && alone, "{} stays mounted", self.0.display());
        }
    }
}

/// Whether it succeeds in the end.
fn patiently(mut attempt: impl FnMut() -> bool) -> bool {
    for _ in 0..2000 {
        if attempt() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// How a disk is formatted and mounted.
pub struct FileSystem {
    pub name: &'static str,
    pub kind: &'static str,
    pub bytes: u64,
    pub mkfs: &'static [&'static str],
    pub options: &'static str,
}

/// Runs a program to success: what it said.
pub fn run(command: &mut Command) -> String {
    let out = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        out.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

const NAME: &str = "disk";
const FILE: INodeNo = INodeNo(2);

struct Served {
    state: Arc<Mutex<State>>,
    bytes: u64,
}

impl Served {
    fn attributes(&self, number: INodeNo) -> FileAttr {
        let is_file = number == FILE;
        FileAttr {
            ino: number,
            size: if is_file { self.bytes } else { 0 },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file {
                FileType::RegularFile
            } else {
                FileType::Directory
            },
            perm: if is_file { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: BLOCK as u32,
        }
    }
}

const ALWAYS: Duration = Duration::from_secs(1_000_000);

impl Filesystem for Served {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // A write arrives as the block layer made it.
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == NAME {
            true => reply.entry(&ALWAYS, &self.attributes(FILE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&ALWAYS, &self.attributes(number));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let length = u64::from(size).min(self.bytes.saturating_sub(offset));
        let mut data = vec![0; length as usize];
        self.state.lock().unwrap().content.read(offset, &mut data);
        reply.data(&data);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.state.lock().unwrap();
        state.content.write(offset, data);
        let found = |what: &Vec<u8>| data.windows(what.len()).position(|part| part == what);
        if let Some(at) = state.lies_about.as_ref().and_then(found) {
            state.content.write(offset + at as u64, &[data[at] ^ 1]);
        }
        if let Some(log) = &mut state.log {
            let data = data.to_vec();
            log.push(Event::Write { offset, data });
        }
        drop(state);
        reply.written(data.len() as u32);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        if let Some(log) = &mut self.state.lock().unwrap().log {
            log.push(Event::Flush);
        }
        reply.ok();
    }
}
