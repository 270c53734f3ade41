//! A disk that dies as disks do: reads that end in an error, reads that never end, writes that fail. QEMU has it over NBD
//! (the network block device protocol's "fixed newstyle", <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>).

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

const INIT_PASSWD: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// The only option that is answered; all others are what a client may do without.
const EXPORT_NAME: u32 = 1;
const UNSUPPORTED: u32 = 0x8000_0001;
const FIXED_NEWSTYLE: u16 = 1;
const HAS_FLAGS_AND_FLUSHES: u16 = 1 | 4;
const EIO: u32 = 5;

/// What is wrong with it.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing.
    None,
    /// Reads that touch these bytes end in an error.
    ReadsFail(Range<u64>),
    /// Reads that touch these bytes are never answered.
    ReadsHang(Range<u64>),
    /// Nothing is written any more.
    WritesFail,
}

/// A disk behind a socket.
pub struct Disk {
    fault: Arc<Mutex<Fault>>,
    /// How QEMU calls it.
    pub url: String,
}

impl Disk {
    /// Serves the file until the tests end.
    pub fn serve(file: &Path) -> Disk {
        let socket = file.with_extension("nbd");
        let disk = Disk {
            fault: Arc::new(Mutex::new(Fault::None)),
            url: format!("nbd+unix:///?socket={}", socket.display()),
        };
        let file = File::options().read(true).write(true).open(file).unwrap();
        let (fault, listener) = (
            Arc::clone(&disk.fault),
            UnixListener::bind(&socket).unwrap(),
        );
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (file, fault) = (file.try_clone().unwrap(), Arc::clone(&fault));
                // Whoever is killed hangs up in the middle of a word.
                std::thread::spawn(move || talk(client?, &file, &fault));
            }
        });
        disk
    }

    /// From now on.
    pub fn has(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }
}

/// One client, from its greeting to its end.
fn talk(mut client: UnixStream, file: &File, fault: &Mutex<Fault>) -> io::Result<()> {
    client.write_all(INIT_PASSWD)?;
    client.write_all(OPTION_MAGIC)?;
    client.write_all(&FIXED_NEWSTYLE.to_be_bytes())?;
    let _flags: [u8; 4] = read(&mut client)?;
    loop {
        let _magic: [u8; 8] = read(&mut client)?;
        let option = u32::from_be_bytes(read(&mut client)?);
        let length = u32::from_be_bytes(read(&mut client)?);
        client.read_exact(&mut vec![0; length as usize])?;
        if option == EXPORT_NAME {
            break;
        }
        client.write_all(&OPTION_REPLY_MAGIC.to_be_bytes())?;
        for word in [option, UNSUPPORTED, 0] {
            client.write_all(&word.to_be_bytes())?;
        }
    }
    client.write_all(&file.metadata()?.len().to_be_bytes())?;
    client.write_all(&HAS_FLAGS_AND_FLUSHES.to_be_bytes())?;
    client.write_all(&[0; 124])?;
    loop {
        if u32::from_be_bytes(read(&mut client)?) != REQUEST_MAGIC {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let [_, _, _, kind]: [u8; 4] = read(&mut client)?;
        let handle: [u8; 8] = read(&mut client)?;
        let from = u64::from_be_bytes(read(&mut client)?);
        let length = u32::from_be_bytes(read(&mut client)?);
        let mut data = vec![0; length as usize];
        let fault = fault.lock().unwrap().clone();
        let touches =
            |bytes: &Range<u64>| from < bytes.end && bytes.start < from + data.len() as u64;
        let mut error = 0;
        match (kind, fault) {
            (0, Fault::ReadsHang(bytes)) if touches(&bytes) => continue,
            (0, Fault::ReadsFail(bytes)) if touches(&bytes) => error = EIO,
            (0, _) => file.read_exact_at(&mut data, from)?,
            (1, fault) => {
                client.read_exact(&mut data)?;
                match fault {
                    Fault::WritesFail => error = EIO,
                    _ => file.write_all_at(&data, from)?,
                }
            }
            (2, _) => return Ok(()),
            // A flush: what is written is in the file.
            _ => {}
        }
        let mut reply = Vec::new();
        reply.extend(REPLY_MAGIC.to_be_bytes());
        reply.extend(error.to_be_bytes());
        reply.extend(handle);
        if kind == 0 && error == 0 {
            reply.extend(data);
        }
        client.write_all(&reply)?;
    }
}

fn read<const LENGTH: usize>(client: &mut UnixStream) -> io::Result<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    client.read_exact(&mut bytes)?;
    Ok(bytes)
}
