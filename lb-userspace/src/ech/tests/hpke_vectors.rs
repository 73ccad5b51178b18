//! RFC 9180, appendices A.1.1 and A.2.1 (X25519 in the base mode), each with its first three encryptions. RFC 9180 has none
//! of AES-256-GCM with X25519.

use crate::ech::key::suite;
use rustls::crypto::hpke::EncapsulatedSecret;

const INFO: &str = "4f6465206f6e2061204772656369616e2055726e";
const PLAIN: &str = "4265617574792069732074727574682c20747275746820626561757479";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<_> = hex.chars().map(|digit| digit.to_digit(16).unwrap() as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn opens(aead: u16, encapsulated: &str, secret: &str, sealed: [&str; 3]) {
    let suite = suite(0x20, (1, aead)).unwrap();
    let encapsulated = EncapsulatedSecret(bytes(encapsulated));
    let mut opener = suite.setup_opener(&encapsulated, &bytes(INFO), &bytes(secret).into()).unwrap();
    for (number, sealed) in sealed.into_iter().enumerate() {
        let associated = format!("Count-{number}");
        assert_eq!(opener.open(associated.as_bytes(), &bytes(sealed)).unwrap(), bytes(PLAIN), "{number}");
    }
}

#[test]
fn aes_128_gcm() {
    opens(
        1,
        "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431",
        "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8",
        [
            "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a",
            "af2d7e9ac9ae7e270f46ba1f975be53c09f8d875bdc8535458c2494e8a6eab251c03d0c22a56b8ca42c2063b84",
            "498dfcabd92e8acedc281e85af1cb4e3e31c7dc394a1ca20e173cb72516491588d96a19ad4a683518973dcc180",
        ],
    );
}

#[test]
fn chacha20_poly1305() {
    opens(
        3,
        "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a",
        "8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb",
        [
            "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28",
            "6b53c051e4199c518de79594e1c4ab18b96f081549d45ce015be002090bb119e85285337cc95ba5f59992dc98c",
            "71146bd6795ccc9c49ce25dda112a48f202ad220559502cef1f34271e0cb4b02b4f10ecac6f48c32f878fae86b",
        ],
    );
}
