//! Archives that no honest publisher makes.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

/// An archive that is written entry by entry, its paths as they are given.
pub struct Archive(Vec<u8>);

impl Archive {
    pub fn new() -> Archive {
        Archive(Vec::new())
    }

    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Archive {
        self.entry(path, b'0', mode, "", content)
    }

    pub fn dir(self, path: &str) -> Archive {
        self.entry(path, b'5', 0o755, "", &[])
    }

    pub fn symlink(self, path: &str, to: &str) -> Archive {
        self.entry(path, b'2', 0o777, to, &[])
    }

    /// Any type of entry: `1` a hard link, `3` a character device, `4` a block device, `6` a pipe.
    pub fn entry(mut self, path: &str, kind: u8, mode: u32, link: &str, content: &[u8]) -> Archive {
        self.0.extend(header(path, kind, mode, link, content.len()));
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn gzip(self) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&self.tar()).unwrap();
        encoder.finish().unwrap()
    }

    pub fn tar(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// A file of so many megabytes of zeros, in a thousandth of it.
pub fn bomb(path: &str, megabytes: usize) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder
        .write_all(&header(path, b'0', 0o755, "", megabytes << 20))
        .unwrap();
    for _ in 0..megabytes {
        encoder.write_all(&vec![0; 1 << 20]).unwrap();
    }
    encoder.write_all(&[0; 1024]).unwrap();
    encoder.finish().unwrap()
}

fn header(path: &str, kind: u8, mode: u32, link: &str, size: usize) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, path.as_bytes());
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{size:011o}").as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    put(329, b"0000001\x000000003\x00");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}
