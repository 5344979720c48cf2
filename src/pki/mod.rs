//! Floor 2: identities, authorities, bundles, and who may connect.
//!
//! An [`Identity`] is what one end of a connection needs: the authorities whose certificates it
//! accepts, its own certificate chain, and the key of that. It loads from PEM files, from the two
//! environment variables of an agent, and from the zip of a server. An [`Authority`] makes new
//! ones. Every error says which file it is about and how to mend it.

mod authority;
mod bundle;
mod certificate;
mod error;
mod identity;
mod key;
mod names;
mod pem;
pub mod provider;
mod store;

pub use authority::{Authority, IssueError, Issued, Request, Validity};
pub use bundle::{MEMBERS, decode_pair, encode_pair, read_zip, write_zip};
pub use certificate::{CertificateError, Description, fingerprint, utc};
pub use error::{Fault, IdentityError, Place};
pub use identity::{Identity, Purpose};
pub use key::{describe_key, key_belongs_to, parse as parse_key};
pub use names::{NameRuleError, NameRules, Names};
pub use pem::{Blocks, LIMIT, certificate_pem, key_pem, read_bounded};
pub use store::{NewFile, StoreError, layout, write_new};

#[cfg(test)]
mod tests;
