//! Bundles: the pair of an environment variable, and the zip of a server's side.

use std::io::{self, Cursor, Write};
use std::path::Path;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use zip::result::{ZipError, ZipResult};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::error::{Fault, IdentityError, Place};
use super::pem::{LIMIT, read_at_most};

/// The members of a zip bundle: the CA's certificate, the client's certificate, the client's key.
pub const MEMBERS: [&str; 3] = ["ca.pem", "cert.pem", "key.pem"];

/// The value of an environment variable: `base64(certificate PEM);base64(key PEM)`. An empty key
/// leaves its half empty.
pub fn encode_pair(certificate_pem: &str, key_pem: &str) -> String {
    format!("{};{}", STANDARD.encode(certificate_pem), STANDARD.encode(key_pem))
}

/// The certificate's and the key's PEM text in the value of an environment variable. White space
/// between the characters and missing padding are forgiven.
///
/// # Errors
/// No `;` or more than one, a half that is not base64, or more than [`LIMIT`] bytes.
pub fn decode_pair(place: &Place, value: &str) -> Result<(Vec<u8>, Vec<u8>), IdentityError> {
    let fault = |fault| IdentityError::new(place, fault);
    if value.len() > LIMIT {
        return Err(fault(Fault::TooLarge));
    }
    let Some((certificate, key)) = value.split_once(';').filter(|(_, key)| !key.contains(';'))
    else {
        return Err(fault(Fault::PairSeparator));
    };
    let decode = |half, text: &str| {
        let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        LENIENT.decode(text).map_err(|error| fault(Fault::PairBase64(half, error)))
    };
    Ok((decode("certificate", certificate)?, decode("key", key)?))
}

/// The three [`MEMBERS`] of a zip file, in that order.
///
/// # Errors
/// Not a zip file, a member that is missing, doubled, compressed or above [`LIMIT`] bytes.
pub fn read_zip(path: &Path, bytes: &[u8]) -> Result<[Vec<u8>; 3], IdentityError> {
    let whole = Place::File(path.to_owned());
    let mut archive = ZipArchive::new(Cursor::new(bytes))
        .map_err(|error| IdentityError::new(&whole, Fault::Zip(error)))?;
    if archive.has_duplicate_names() {
        return Err(IdentityError::new(&whole, Fault::TwiceInZip));
    }
    let mut read = |member| {
        let fault = |fault| IdentityError::new(&Place::Member(path.to_owned(), member), fault);
        let file = archive.by_name(member).map_err(|error| match error {
            ZipError::FileNotFound => fault(Fault::NoMember),
            error => fault(Fault::Zip(error)),
        })?;
        if file.compression() != CompressionMethod::Stored {
            // Not a number of any method: only the variant speaks.
            return Err(fault(Fault::Zip(ZipError::CompressionMethodNotSupported(u16::MAX))));
        }
        read_at_most(file)
            .map_err(|error| fault(Fault::Read(error)))?
            .ok_or_else(|| fault(Fault::TooLarge))
    };
    let [ca, certificate, key] = MEMBERS;
    Ok([read(ca)?, read(certificate)?, read(key)?])
}

/// A zip file of the three [`MEMBERS`], stored, not compressed.
///
/// # Errors
/// Only what writing to memory can give.
pub fn write_zip(members: [&str; 3]) -> io::Result<Vec<u8>> {
    let write = || -> ZipResult<Vec<u8>> {
        let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .unix_permissions(0o600);
        for (name, text) in MEMBERS.into_iter().zip(members) {
            archive.start_file(name, options)?;
            archive.write_all(text.as_bytes())?;
        }
        Ok(archive.finish()?.into_inner())
    };
    write().map_err(io::Error::other)
}

/// People paste these values through tools that drop the padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
