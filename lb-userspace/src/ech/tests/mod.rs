//! Against rustls' client, and against ClientHellos that no honest client makes.

mod hpke_vectors;
mod split;

use super::open::Sealed;
use super::parts::Parts;
use super::wire::ENCRYPTED_CLIENT_HELLO;
use super::*;
use crate::sniff;
use pkcs8::der::pem::{self, LineEnding};
use proptest::prelude::*;
use rustls::client::{EchConfig as ClientEch, EchGreaseConfig, EchMode};
use rustls::crypto::aws_lc_rs::{default_provider, hpke};
use rustls::crypto::hpke::{Hpke as _, HpkePublicKey, HpkeSealer};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::sync::Arc;

const PUBLIC: &str = "gateway.example.com";
const SECRET: &str = "app1.redis.example.com";

fn key(config_id: u8) -> Arc<Key> {
    let (file, _) = generate(Some(config_id), PUBLIC).unwrap();
    Arc::new(only(&file))
}

/// The key of a file with one.
fn only(file: &str) -> Key {
    let mut keys = Key::read(file.as_bytes()).unwrap();
    assert_eq!(keys.len(), 1);
    keys.remove(0)
}

fn mode_of(key: &Key) -> EchMode {
    let list = key.config().list().into();
    EchMode::Enable(ClientEch::new(list, hpke::ALL_SUPPORTED_SUITES).unwrap())
}

fn client(mode: EchMode, alpn: &[&str]) -> ClientConnection {
    let builder = ClientConfig::builder_with_provider(default_provider().into()).with_ech(mode).unwrap();
    let mut config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    ClientConnection::new(config.into(), SECRET.try_into().unwrap()).unwrap()
}

/// The body of the ClientHello that a real client sends.
fn hello(mode: EchMode, alpn: &[&str]) -> Vec<u8> {
    let mut window = Vec::new();
    client(mode, alpn).write_tls(&mut window).unwrap();
    sniff::body(&window).unwrap().into_owned()
}

fn open(body: &[u8], keys: &Keys) -> Result<Option<Vec<u8>>, Malformed> {
    let opened = Sealed::find(body)?.map_or(Ok(None), |sealed| sealed.open(keys))?;
    Ok(opened.map(|(inner, _)| inner))
}

/// Name and protocols of a ClientHello.
fn asks_for(body: &[u8]) -> (String, Vec<String>) {
    let none = sniff::ClientHello {
        sni: None,
        odd_name: None,
        alpn: sniff::Alpn::default(),
        version: sniff::TlsVersion(0),
        length: 0,
        request: None,
        offers_ech: false,
    };
    let hello = sniff::inner(body, &none).unwrap();
    let alpn = hello.alpn.iter().map(|name| String::from_utf8(name.to_vec()).unwrap());
    (hello.sni.unwrap().as_str().to_owned(), alpn.collect())
}

#[test]
fn a_real_clients_inner_name_and_protocols_are_read() {
    let keys = [key(1), key(2)];
    for used in &keys {
        let outer = hello(mode_of(used), &["h2", "redis"]);
        assert_eq!(asks_for(&outer).0, PUBLIC);
        let inner = open(&outer, &keys).unwrap().expect("one of the keys is its own");
        assert_eq!(asks_for(&inner), (SECRET.into(), vec!["h2".into(), "redis".into()]));
    }
}

#[test]
fn what_is_sealed_for_others_does_not_open_and_grease_is_not_even_tried() {
    let (ours, others) = ([key(1)], key(1));
    let sealed_for_others = hello(mode_of(&others), &[]);
    assert!(Sealed::find(&sealed_for_others).unwrap().unwrap().candidates(&ours).next().is_some());
    assert_eq!(open(&sealed_for_others, &ours), Ok(None));
    let other_number = hello(mode_of(&key(2)), &[]);
    assert!(Sealed::find(&other_number).unwrap().unwrap().candidates(&ours).next().is_none());

    let placeholder = HpkePublicKey(ours[0].config().public_key.clone());
    let grease = EchGreaseConfig::new(hpke::DH_KEM_X25519_HKDF_SHA256_AES_128, placeholder);
    assert_eq!(open(&hello(EchMode::Grease(grease), &[]), &ours), Ok(None));
}

#[test]
fn nothing_opens_of_which_a_byte_was_changed() {
    let keys = [key(7)];
    let outer = hello(mode_of(&keys[0]), &["redis"]);
    for at in 0..outer.len() {
        let mut changed = outer.clone();
        changed[at] ^= 0x20;
        let opened = open(&changed, &keys);
        assert!(matches!(opened, Ok(None) | Err(Malformed)), "byte {at} of {}", outer.len());
    }
    for length in 0..outer.len() {
        assert_eq!(Sealed::find(&outer[..length]).err(), Some(Malformed), "{length} of {}", outer.len());
    }
}

#[test]
fn one_that_a_server_in_split_mode_would_get_is_none() {
    let body = made(&[(ENCRYPTED_CLIENT_HELLO, vec![1])], b"", b"");
    assert!(Sealed::find(&body).unwrap().is_none());
    let body = made(&[(ENCRYPTED_CLIENT_HELLO, vec![1, 0])], b"", b"");
    assert_eq!(Sealed::find(&body).err(), Some(Malformed));
}

/// A ClientHello's body of these extensions, with a session id, and something behind it.
fn made(extensions: &[(u16, Vec<u8>)], session_id: &[u8], behind: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(session_id.len() as u8);
    body.extend_from_slice(session_id);
    body.extend([0, 2, 0x13, 1, 1, 0]);
    let mut block = Vec::new();
    for (kind, data) in extensions {
        block.extend(kind.to_be_bytes());
        wire::put_vector16(&mut block, data).unwrap();
    }
    wire::put_vector16(&mut body, &block).unwrap();
    body.extend_from_slice(behind);
    body
}

/// A client that says what it is told to.
struct Liar {
    config_id: u8,
    encapsulated: Vec<u8>,
    sealer: Box<dyn HpkeSealer>,
}

impl Liar {
    fn new(key: &Key) -> Self {
        let suite = hpke::DH_KEM_X25519_HKDF_SHA256_AES_128;
        let mut info = b"tls ech\0".to_vec();
        info.extend_from_slice(&key.config().encoded);
        let public = HpkePublicKey(key.config().public_key.clone());
        let (encapsulated, sealer) = suite.setup_sealer(&info, &public).unwrap();
        Self { config_id: key.config().config_id, encapsulated: encapsulated.0, sealer }
    }

    /// The extension without its payload.
    fn front(&self, encapsulated: &[u8]) -> Vec<u8> {
        let mut data = vec![0, 0, 1, 0, 1, self.config_id];
        wire::put_vector16(&mut data, encapsulated).unwrap();
        data
    }

    /// The body of an outer ClientHello of these extensions that carries this inner one behind this `front`.
    fn seal(&mut self, front: &[u8], extensions: &[(u16, Vec<u8>)], encoded: &[u8]) -> Vec<u8> {
        let outer = |payload: &[u8]| {
            let mut data = front.to_vec();
            wire::put_vector16(&mut data, payload).unwrap();
            let mut all = extensions.to_vec();
            all.push((ENCRYPTED_CLIENT_HELLO, data));
            made(&all, &[9; 32], b"")
        };
        // What it will carry is sixteen bytes longer than what it seals.
        let associated = outer(&vec![0; encoded.len() + 16]);
        outer(&self.sealer.seal(&associated, encoded).unwrap())
    }

    fn first(&mut self, extensions: &[(u16, Vec<u8>)], encoded: &[u8]) -> Vec<u8> {
        let front = self.front(&self.encapsulated);
        self.seal(&front, extensions, encoded)
    }

    fn second(&mut self, extensions: &[(u16, Vec<u8>)], encoded: &[u8]) -> Vec<u8> {
        let front = self.front(b"");
        self.seal(&front, extensions, encoded)
    }
}

/// An outer ClientHello of these extensions that carries this inner one.
fn sealing(key: &Key, extensions: &[(u16, Vec<u8>)], encoded: &[u8]) -> Vec<u8> {
    Liar::new(key).first(extensions, encoded)
}

fn mark() -> (u16, Vec<u8>) {
    (ENCRYPTED_CLIENT_HELLO, vec![1])
}

/// A reference to extensions of the outer ClientHello.
fn reference(kinds: &[u16]) -> (u16, Vec<u8>) {
    let mut data = vec![2 * kinds.len() as u8];
    data.extend(kinds.iter().flat_map(|kind| kind.to_be_bytes()));
    (0xfd00, data)
}

#[test]
fn extensions_that_were_left_out_are_those_of_the_outer_one() {
    let key = key(3);
    let outer = [(10, vec![1]), (11, vec![2, 2]), (12, vec![]), (13, vec![4])];
    let encoded = made(&[(50, vec![5]), reference(&[10, 12, 13]), mark()], b"", &[0; 40]);
    let opened = open(&sealing(&key, &outer, &encoded), &[key]).unwrap().unwrap();
    let expected = [(50, vec![5]), (10, vec![1]), (12, vec![]), (13, vec![4]), mark()];
    assert_eq!(opened, made(&expected, &[9; 32], b""));
}

#[test]
fn an_inner_one_that_contradicts_the_rfc_is_malformed() {
    let key = key(3);
    let outer = [(10, vec![1]), (11, vec![2])];
    let plain = |extensions: &[(u16, Vec<u8>)]| made(extensions, b"", b"");
    let cases: [(&str, Vec<u8>); 14] = [
        ("padding that is not zero", made(&[mark()], b"", &[0, 0, 1])),
        ("a session id", made(&[mark()], &[1; 32], b"")),
        ("without a mark", plain(&[(50, vec![])])),
        ("a mark of another type", plain(&[(ENCRYPTED_CLIENT_HELLO, vec![0])])),
        ("a longer mark", plain(&[(ENCRYPTED_CLIENT_HELLO, vec![1, 0])])),
        ("two marks", plain(&[mark(), mark()])),
        ("two references", plain(&[mark(), reference(&[10]), reference(&[11])])),
        ("a reference to nothing", plain(&[mark(), reference(&[])])),
        ("a reference to what is not there", plain(&[mark(), reference(&[99])])),
        ("a reference out of order", plain(&[mark(), reference(&[11, 10])])),
        ("a reference to one twice", plain(&[mark(), reference(&[10, 10])])),
        ("a reference to the encryption itself", plain(&[mark(), reference(&[10, ENCRYPTED_CLIENT_HELLO])])),
        ("half a number", plain(&[mark(), (0xfd00, vec![3, 0, 10, 0])])),
        ("a length that lies", plain(&[mark()])[..46].to_vec()),
    ];
    let keys = [key.clone()];
    for (what, encoded) in cases {
        assert_eq!(open(&sealing(&key, &outer, &encoded), &keys), Err(Malformed), "{what}");
    }
    assert!(open(&sealing(&key, &outer, &plain(&[mark()])), &keys).unwrap().is_some());
}

#[test]
fn an_outer_one_that_contradicts_the_rfc_is_malformed() {
    let outer = hello(mode_of(&key(3)), &[]);
    let extension = Parts::read(&outer).unwrap().0.extensions.into_iter();
    let sealed = extension.clone().find(|one| one.kind == ENCRYPTED_CLIENT_HELLO).unwrap().data.to_vec();
    let with = |data: Vec<u8>| made(&[(ENCRYPTED_CLIENT_HELLO, data)], b"", b"");
    let whole = || (ENCRYPTED_CLIENT_HELLO, sealed.clone());
    let mut longer = sealed.clone();
    longer.push(0);
    let mut of_no_type = sealed.clone();
    of_no_type[0] = 2;
    let encapsulated = usize::from(u16::from_be_bytes([sealed[6], sealed[7]]));
    let mut without_payload = sealed[..8 + encapsulated].to_vec();
    without_payload.extend([0, 0]);
    for body in [
        with(sealed[..sealed.len() - 1].to_vec()),
        with(longer),
        with(of_no_type),
        with(without_payload),
        with(Vec::new()),
        made(&[whole(), whole()], b"", b""),
        made(&[whole()], b"", b"behind"),
    ] {
        assert_eq!(Sealed::find(&body).err(), Some(Malformed));
    }
    assert!(Sealed::find(&made(&[whole()], b"", b"")).unwrap().is_some());
}

/// The example of RFC 9934.
const EXAMPLE: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VuBCIEICjd4yGRdsoP9gU7YT7My8DHx1Tjme8GYDXrOMCi8v1V
-----END PRIVATE KEY-----
-----BEGIN ECHCONFIG-----
AD7+DQA65wAgACA8wVN2BtscOl3vQheUzHeIkVmKIiydUhDCliA4iyQRCwAEAAEA
AQALZXhhbXBsZS5jb20AAA==
-----END ECHCONFIG-----
";

#[test]
fn the_rfcs_key_file_is_read() {
    let key = only(EXAMPLE);
    let config = key.config();
    assert_eq!((config.config_id, config.public_name.as_str()), (0xe7, "example.com"));
    assert_eq!(config.suites, [(1, 1)]);
    let outer = hello(mode_of(&key), &[]);
    assert_eq!(asks_for(&open(&outer, &[Arc::new(key)]).unwrap().unwrap()).0, SECRET);
}

#[test]
fn a_key_file_that_cannot_be_used_says_why() {
    let sections = |text: &str| -> (String, String) {
        let at = text.find("-----BEGIN ECHCONFIG").unwrap();
        (text[..at].to_owned(), text[at..].to_owned())
    };
    let (private, config) = sections(EXAMPLE);
    let (other, _) = generate(None, PUBLIC).unwrap();
    let p256 = rcgen::KeyPair::generate().unwrap().serialize_pem();
    for (text, error) in [
        (private.clone(), KeyError::NoConfig),
        (config.clone(), KeyError::NoPrivateKey),
        (sections(&other).0 + &config, KeyError::Mismatch),
        (p256 + &config, KeyError::Unsupported),
        (private.clone() + &config.replace("AD7+DQA65wAg", "AD7+DQA65wAh"), KeyError::Unsupported),
        (private.clone() + &config.replace("AD7+DQA", "AD7+DgA"), KeyError::Config(Unusable::Unknown)),
        (private + &config.replace("AD7+DQA", "AD7+DQB"), KeyError::Config(Unusable::Malformed)),
    ] {
        assert_eq!(Key::read(text.as_bytes()).unwrap_err(), error, "{text}");
    }
}

#[test]
fn a_config_with_a_mandatory_extension_is_passed_over_for_the_next() {
    let known = only(EXAMPLE).config().clone();
    let with = |kind: u16| {
        let mut encoded = known.encoded.clone();
        let end = encoded.len() - 2;
        encoded.truncate(end);
        let mut extensions = kind.to_be_bytes().to_vec();
        extensions.extend([0, 0]);
        wire::put_vector16(&mut encoded, &extensions).unwrap();
        let length = (encoded.len() - 4) as u16;
        encoded[2..4].copy_from_slice(&length.to_be_bytes());
        encoded
    };
    let list = |configs: &[&[u8]]| {
        let mut list = Vec::new();
        wire::put_vector16(&mut list, &configs.concat()).unwrap();
        list
    };
    assert_eq!(EchConfig::all(&list(&[&with(0x8001), &known.encoded])), Ok(vec![known.clone()]));
    assert_eq!(EchConfig::all(&list(&[&with(0x8001)])), Err(Unusable::Unknown));
    assert_eq!(EchConfig::all(&list(&[&with(1)])).unwrap()[0].public_name, known.public_name);
    assert_eq!(EchConfig::all(&list(&[])), Err(Unusable::Unknown));
}

/// RFC 9934, section 3.
#[test]
fn a_private_key_is_that_of_one_config_or_of_several() {
    let (file, _) = generate(Some(1), PUBLIC).unwrap();
    let private = &file[..file.find("-----BEGIN ECHCONFIG").unwrap()];
    let own = only(&file).config().clone();
    let again =
        EchConfig::new(2, own.kem, own.public_key.clone(), own.suites.clone(), "other.example.com").unwrap();
    let foreign = generate(Some(3), PUBLIC).unwrap().1;
    let mut p256 = own.encoded.clone();
    p256[5..7].copy_from_slice(&[0, 0x10]);
    let read = |configs: &[&[u8]]| {
        let mut list = Vec::new();
        wire::put_vector16(&mut list, &configs.concat()).unwrap();
        let section = pem::encode_string("ECHCONFIG", LineEnding::LF, &list).unwrap();
        Key::read((private.to_owned() + &section).as_bytes())
    };
    let keys = read(&[&p256, &foreign.encoded, &own.encoded, &again.encoded]).unwrap();
    let keys: Vec<_> = keys.into_iter().map(Arc::new).collect();
    assert_eq!(keys.iter().map(|key| key.config()).collect::<Vec<_>>(), [&own, &again]);
    assert_eq!(asks_for(&open(&hello(mode_of(&keys[1]), &[]), &keys).unwrap().unwrap()).0, SECRET);
    assert_eq!(read(&[&foreign.encoded]).unwrap_err(), KeyError::Mismatch);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..600, flip: u8) {
        let keys = [Arc::new(only(EXAMPLE))];
        let _ = open(&bytes, &keys);
        let _ = EchConfig::all(&bytes);
        let _ = Key::read(&bytes);
        // Of a whole one, some are put elsewhere.
        let mut encoded = made(&[(50, vec![5]), reference(&[10, 12]), mark()], b"", &[0; 40]);
        if let Some(byte) = encoded.get_mut(at) {
            *byte ^= flip;
        }
        let outer = [(10, vec![1]), (12, bytes)];
        let _ = open(&sealing(&keys[0], &outer, &encoded), &keys);
    }
}
