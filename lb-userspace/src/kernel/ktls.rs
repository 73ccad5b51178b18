//! kTLS: the records of a TLS session, sealed and opened by the kernel in the socket's own calls (the upper-layer protocol
//! `tls`, Documentation/networking/tls.rst).

use super::tcp::set_bytes;
use std::ffi::c_int;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::sync::OnceLock;
use zeroize::Zeroizing;

/// The content type of a record (RFC 8446, section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ContentType(pub(crate) u8);

impl ContentType {
    pub(crate) const ALERT: Self = Self(21);
    pub(crate) const HANDSHAKE: Self = Self(22);
    pub(crate) const APPLICATION_DATA: Self = Self(23);
}

/// A version of TLS whose records the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Tls12,
    Tls13,
}

/// A cipher of such records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cipher {
    Aes128Gcm,
    Aes256Gcm,
    Chacha20Poly1305,
}

/// How the records of a session are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Suite {
    pub(crate) version: Version,
    pub(crate) cipher: Cipher,
}

impl Suite {
    /// All that the kernel may have.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let ciphers = [Cipher::Aes128Gcm, Cipher::Aes256Gcm, Cipher::Chacha20Poly1305];
        [Version::Tls12, Version::Tls13]
            .into_iter()
            .flat_map(move |version| ciphers.map(|cipher| Self { version, cipher }))
    }

    /// Bytes of a record beside its plaintext: its header, what the nonce takes in it (RFC 5288, section 3), the content type
    /// (RFC 8446, section 5.2; the kernel does not pad), and the tag.
    pub(crate) const fn overhead(self) -> u64 {
        let nonce_or_type = match (self.version, self.cipher) {
            (Version::Tls13, _) => 1,
            (Version::Tls12, Cipher::Chacha20Poly1305) => 0,
            (Version::Tls12, Cipher::Aes128Gcm | Cipher::Aes256Gcm) => 8,
        };
        5 + nonce_or_type + 16
    }

    const fn key_length(self) -> usize {
        match self.cipher {
            Cipher::Aes128Gcm => 16,
            Cipher::Aes256Gcm | Cipher::Chacha20Poly1305 => 32,
        }
    }

    /// Bytes of the nonce that the kernel calls the salt: those that no record of TLS 1.2 carries.
    const fn salt_length(self) -> usize {
        match self.cipher {
            Cipher::Aes128Gcm | Cipher::Aes256Gcm => 4,
            Cipher::Chacha20Poly1305 => 0,
        }
    }

    /// Bytes of linux/tls.h `struct tls12_crypto_info_*`.
    const fn info_length(self) -> usize {
        size_of::<[u16; 2]>() + NONCE + self.key_length() + SEQUENCE
    }
}

/// Bytes of a nonce, the same for all ciphers.
pub(crate) const NONCE: usize = 12;

/// Bytes of a sequence number.
const SEQUENCE: usize = 8;

/// The keys of one direction: linux/tls.h `struct tls12_crypto_info_*`. They are overwritten when this is dropped.
pub(crate) struct Keys(Zeroizing<Vec<u8>>);

impl Keys {
    /// `nonce`: what a record's sequence number is combined with. `sequence`: of the next record. A key of another length than
    /// the suite's is refused.
    pub(crate) fn new(suite: Suite, key: &[u8], nonce: [u8; NONCE], sequence: u64) -> Option<Self> {
        if key.len() != suite.key_length() {
            return None;
        }
        let version: u16 = match suite.version {
            Version::Tls12 => 0x0303,
            Version::Tls13 => 0x0304,
        };
        let cipher = match suite.cipher {
            Cipher::Aes128Gcm => libc::TLS_CIPHER_AES_GCM_128,
            Cipher::Aes256Gcm => libc::TLS_CIPHER_AES_GCM_256,
            Cipher::Chacha20Poly1305 => libc::TLS_CIPHER_CHACHA20_POLY1305,
        };
        let (salt, carried) = nonce.split_at(suite.salt_length());
        // At once as long as it gets: one that grows leaves a copy behind.
        let mut info = Zeroizing::new(Vec::with_capacity(suite.info_length()));
        info.extend(version.to_ne_bytes());
        info.extend(cipher.to_ne_bytes());
        for part in [carried, key, salt, &sequence.to_be_bytes()] {
            info.extend(part);
        }
        Some(Self(info))
    }
}

/// A direction of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Transmit,
    Receive,
}

impl Direction {
    const fn option(self) -> c_int {
        match self {
            Self::Transmit => libc::TLS_TX,
            Self::Receive => libc::TLS_RX,
        }
    }
}

/// Prepares a connected socket for [`set_keys`]. Until then it is what it was.
pub(crate) fn prepare(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_bytes(socket, libc::IPPROTO_TCP, libc::TCP_ULP, b"tls")
}

/// From here on what is written to the socket goes out in records, or what is read from it comes out of records; in TLS 1.3
/// also with new keys, which Linux takes since 6.14.
pub(crate) fn set_keys(socket: BorrowedFd<'_>, direction: Direction, keys: &Keys) -> io::Result<()> {
    set_bytes(socket, libc::SOL_TLS, direction.option(), &keys.0)
}

/// The sequence number of the next record that is sent.
pub(crate) fn next_sequence(socket: BorrowedFd<'_>, suite: Suite) -> io::Result<u64> {
    // The keys come with it.
    let mut info = Zeroizing::new(vec![0; suite.info_length()]);
    let mut length = libc::socklen_t::try_from(info.len()).map_err(io::Error::other)?;
    // SAFETY: `info` is writable for `length` bytes, and the kernel writes no more.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_TLS,
            libc::TLS_TX,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if status == -1 {
        return Err(io::Error::last_os_error());
    }
    let sequence = info.last_chunk::<SEQUENCE>().expect("an info ends with a sequence number");
    Ok(u64::from_be_bytes(*sequence))
}

/// What the kernel can do with a suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Support {
    Nothing,
    /// A session keeps its keys for as long as it lasts.
    FixedKeys,
    /// In TLS 1.3 a session may get new keys: since Linux 6.14.
    NewKeys,
}

/// What the kernel can do with this suite. Asked once, of a connection to itself.
pub(crate) fn support(suite: Suite) -> Support {
    static ANSWERS: [[OnceLock<Support>; 3]; 2] = [const { [const { OnceLock::new() }; 3] }; 2];
    *ANSWERS[suite.version as usize][suite.cipher as usize].get_or_init(|| {
        try_suite(suite).unwrap_or_else(|error| {
            tracing::info!(?suite, %error, "kTLS is not used for sessions with this suite");
            Support::Nothing
        })
    })
}

fn try_suite(suite: Suite) -> io::Result<Support> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let socket = TcpStream::connect(listener.local_addr()?)?;
    let key = [0; 32];
    let keys = Keys::new(suite, &key[..suite.key_length()], [0; NONCE], 0).expect("as long as it has to be");
    prepare(socket.as_fd())?;
    set_keys(socket.as_fd(), Direction::Transmit, &keys)?;
    set_keys(socket.as_fd(), Direction::Receive, &keys)?;
    // Whether the answer has the form that is expected.
    next_sequence(socket.as_fd(), suite)?;
    let again = set_keys(socket.as_fd(), Direction::Transmit, &keys);
    Ok(if again.is_ok() { Support::NewKeys } else { Support::FixedKeys })
}

/// Room for a control message of one byte, aligned as `cmsghdr`.
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// `CMSG_SPACE(1)`.
// SAFETY: it only computes.
const CONTROL: usize = unsafe { libc::CMSG_SPACE(1) } as usize;

const _: () = assert!(align_of::<Control>() >= align_of::<libc::cmsghdr>(), "sys/socket.h");

/// A message of one buffer and one control message.
fn message(buffer: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    // SAFETY: a `msghdr` of zeros is one without anything.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    (message.msg_iov, message.msg_iovlen) = (buffer, 1);
    (message.msg_control, message.msg_controllen) = (control.0.as_mut_ptr().cast(), CONTROL as _);
    message
}

/// What was received by one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    /// Bytes of plaintext.
    pub(crate) bytes: usize,
    /// Of what kind; `None`: the peer has sent its FIN.
    pub(crate) content: Option<ContentType>,
}

/// Receives the plaintext of one record, or of several of the same content type. The socket does not block. `EBADMSG`: a record
/// is not what it should be; then nothing can be sent until the socket's error is taken.
pub(crate) fn receive(socket: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<Received> {
    let mut buffer = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let mut control = Control([0; CONTROL]);
    let mut message = message(&mut buffer, &mut control);
    // SAFETY: `message` refers to `into` and `control`, which live, are writable for the lengths given, and are used by nobody
    // else during the call.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let bytes = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: recvmsg has set `msg_controllen` to what it has written, and CMSG_FIRSTHDR looks at that.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if header.is_null() {
        return Ok(Received { bytes, content: None });
    }
    // SAFETY: the header lies in `control`, aligned, and the kernel has written it.
    let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
    if (level, kind) != (libc::SOL_TLS, libc::TLS_GET_RECORD_TYPE) {
        return Err(io::Error::other("a control message that nobody has asked for"));
    }
    // SAFETY: a message of this type has one byte behind its header.
    let content = unsafe { *libc::CMSG_DATA(header) };
    Ok(Received { bytes, content: Some(ContentType(content)) })
}

/// Sends a record of another content type than application data, behind all that was written; all of it, or nothing. The socket
/// does not block.
pub(crate) fn send_record(socket: BorrowedFd<'_>, content: ContentType, bytes: &[u8]) -> io::Result<()> {
    let mut buffer = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control([0; CONTROL]);
    let message = message(&mut buffer, &mut control);
    // SAFETY: there is room for one header with one byte in `control`, which is aligned as a header has to be; sendmsg only
    // reads what `message` refers to.
    let sent = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_TLS;
        (*header).cmsg_type = libc::TLS_SET_RECORD_TYPE;
        (*header).cmsg_len = libc::CMSG_LEN(1) as _;
        *libc::CMSG_DATA(header) = content.0;
        libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    match usize::try_from(sent) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_form_of_linux_tls_h() {
        for (suite, expected) in Suite::all().zip([
            size_of::<libc::tls12_crypto_info_aes_gcm_128>(),
            size_of::<libc::tls12_crypto_info_aes_gcm_256>(),
            size_of::<libc::tls12_crypto_info_chacha20_poly1305>(),
            size_of::<libc::tls12_crypto_info_aes_gcm_128>(),
            size_of::<libc::tls12_crypto_info_aes_gcm_256>(),
            size_of::<libc::tls12_crypto_info_chacha20_poly1305>(),
        ]) {
            let key: Vec<u8> = (100..).take(suite.key_length()).collect();
            let nonce = std::array::from_fn(|i| i as u8);
            let keys = Keys::new(suite, &key, nonce, 0x0102).unwrap();
            assert_eq!(keys.0.len(), expected, "{suite:?}");
            assert_eq!(keys.0.len(), suite.info_length(), "{suite:?}");
            assert!(keys.0.ends_with(&[0, 0, 0, 0, 0, 0, 1, 2]), "{suite:?}");
            assert!(Keys::new(suite, &key[1..], nonce, 0).is_none());
        }
        let suite = Suite { version: Version::Tls13, cipher: Cipher::Aes128Gcm };
        let keys = Keys::new(suite, &[7; 16], std::array::from_fn(|i| i as u8), 0).unwrap();
        assert_eq!(keys.0[4..12], [4, 5, 6, 7, 8, 9, 10, 11], "the part of the nonce behind the salt");
        assert_eq!(keys.0[28..32], [0, 1, 2, 3], "the salt");
    }

    #[test]
    fn a_kernel_without_ktls_takes_no_suite() {
        use crate::kernel::probe::{Answer, ktls};
        let taken = Suite::all().filter(|suite| support(*suite) != Support::Nothing).count();
        assert_eq!(taken > 0, ktls() == Answer::Yes);
        for suite in Suite::all().filter(|suite| suite.version == Version::Tls12) {
            assert_ne!(support(suite), Support::NewKeys);
        }
    }
}
