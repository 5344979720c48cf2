//! What an operator or a peer hands over as certificates: PEM, environment pairs, zips, and the
//! names in a certificate. Nothing panics, and what is shown of it has no control characters.
#![no_main]

use std::path::Path;

use adit::pki::{Blocks, Names, Place, decode_pair, read_zip};
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;

fuzz_target!(|bytes: &[u8]| {
    let path = Path::new("input");
    let place = Place::File(path.to_owned());
    if let Err(error) = Blocks::parse(&place, bytes) {
        assert!(shown(&error));
    }
    if let Err(error) = read_zip(path, bytes) {
        assert!(shown(&error));
    }
    if let Ok(text) = str::from_utf8(bytes)
        && let Err(error) = decode_pair(&place, text)
    {
        assert!(shown(&error));
    }
    if let Ok(names) = Names::of(&CertificateDer::from(bytes)) {
        let label = names.label();
        assert!(!label.is_empty() && label.chars().count() <= 64);
        assert!(!label.chars().any(char::is_control), "{label:?}");
    }
});

fn shown(error: &impl std::fmt::Display) -> bool {
    !error.to_string().chars().any(|c| c.is_control() && c != '\n')
}
