//! What OpenSSL has and its crate does not wrap, behind safe faces.
//!
//! Nothing here looks at bytes of the protocol: that is done by OpenSSL, and by the callbacks that
//! the crate guards.
#![expect(unsafe_code, reason = "no safe crate wraps these functions")]

use std::ffi::{c_int, c_long, c_uint};

use foreign_types::ForeignTypeRef;
use openssl::error::ErrorStack;
use openssl::ssl::{SslRef, SslStream};
use openssl::x509::X509VerifyResult;
use openssl_sys as sys;

/// OpenSSL's `BIO_ADDR`, which is only ever seen behind a pointer.
#[repr(C)]
struct BioAddr {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn DTLSv1_listen(ssl: *mut sys::SSL, peer: *mut BioAddr) -> c_int;
    fn BIO_ADDR_new() -> *mut BioAddr;
    fn BIO_ADDR_free(address: *mut BioAddr);
    fn SSL_alloc_buffers(ssl: *mut sys::SSL) -> c_int;
    fn SSL_free_buffers(ssl: *mut sys::SSL) -> c_int;
    fn DTLS_set_timer_cb(
        ssl: *mut sys::SSL,
        callback: Option<extern "C" fn(*mut sys::SSL, c_uint) -> c_uint>,
    );
}

/// What came of a stranger's datagram.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Listened {
    /// Not a ClientHello that it would go on with.
    Nothing,
    /// A ClientHello with the cookie that its sender's address must have. The stream goes on with
    /// `accept`.
    Verified,
}

/// Room for a peer's address, which `DTLSv1_listen` insists on and which our own BIO leaves empty.
pub(super) struct PeerSlot(*mut BioAddr);

// SAFETY: it is a plain allocation that nobody else points to, and no thread's own.
unsafe impl Send for PeerSlot {}

impl PeerSlot {
    /// Fails when there is no memory.
    pub(super) fn new() -> Result<Self, ErrorStack> {
        // SAFETY: takes nothing and returns an allocation, or null.
        let slot = unsafe { BIO_ADDR_new() };
        if slot.is_null() { Err(ErrorStack::get()) } else { Ok(Self(slot)) }
    }
}

impl Drop for PeerSlot {
    fn drop(&mut self) {
        // SAFETY: it came from `BIO_ADDR_new`, is freed once, and nothing keeps it: OpenSSL uses it
        // only during the call that it is given to.
        unsafe { BIO_ADDR_free(self.0) }
    }
}

/// Gives OpenSSL the datagrams that `stream` holds, without keeping anything of them unless one is
/// a ClientHello with the right cookie (RFC 6347, section 4.2.1).
pub(super) fn listen<S>(
    stream: &mut SslStream<S>,
    slot: &mut PeerSlot,
) -> Result<Listened, ErrorStack> {
    // SAFETY: both pointers are valid for the call and, being borrowed mutably, used by nobody
    // else. The stream has its BIO, whose callbacks the crate guards against panics. The cookie
    // callbacks that the function needs are those of the context; without them it fails.
    let result = unsafe { DTLSv1_listen(stream.ssl().as_ptr(), slot.0) };
    match result {
        1.. => Ok(Listened::Verified),
        0 => Ok(Listened::Nothing),
        _ => Err(ErrorStack::get()),
    }
}

/// How long OpenSSL waits before it sends a flight of the handshake again, in microseconds: a
/// quarter of a second, then twice as long each time up to one second.
///
/// RFC 6347, section 4.2.4.1, recommends to begin with one second and leaves less to those who
/// know better; RFC 9147, section 5.8.2, begins with less. Within the protocol's 10 s that makes 11
/// attempts instead of 4, and 12 is where OpenSSL gives up.
extern "C" fn retransmission(_: *mut sys::SSL, last: c_uint) -> c_uint {
    const FIRST: c_uint = 250_000;
    const LONGEST: c_uint = 1_000_000;
    if last == 0 { FIRST } else { last.saturating_mul(2).min(LONGEST) }
}

/// Makes handshakes of `ssl` be sent again sooner than OpenSSL would.
pub(super) fn retransmit_soon(ssl: &mut SslRef) {
    // SAFETY: the pointer is valid and borrowed mutably. The callback is a plain function that
    // lives for ever and touches neither of its arguments' memory.
    unsafe { DTLS_set_timer_cb(ssl.as_ptr(), Some(retransmission)) }
}

/// Refuses chains of certificates of more than so many bytes. DTLS makes room for a message as soon
/// as a part of it has come, and for ten at a time, so this bounds what a stranger can make a
/// handshake hold; OpenSSL allows 100 KiB.
pub(super) fn limit_chain(ssl: &mut SslRef, bytes: c_long) {
    // SAFETY: the pointer is valid and borrowed mutably, and this command takes a number and leaves
    // the pointer that it is given alone.
    unsafe { sys::SSL_ctrl(ssl.as_ptr(), SSL_CTRL_SET_MAX_CERT_LIST, bytes, std::ptr::null_mut()) };
}

/// Of OpenSSL's `ssl.h`.
const SSL_CTRL_SET_MAX_CERT_LIST: c_int = 51;

/// Makes sure that OpenSSL has its buffers for records, 17 KiB each way. To be called before anything
/// that reads or writes once [`free_buffers`] has been: OpenSSL 3.0 does not look whether it has one
/// to write to.
pub(super) fn ensure_buffers<S>(stream: &mut SslStream<S>) -> Result<(), ErrorStack> {
    // SAFETY: the pointer is valid and borrowed mutably. What is there stays.
    match unsafe { SSL_alloc_buffers(stream.ssl().as_ptr()) } {
        1 => Ok(()),
        _ => Err(ErrorStack::get()),
    }
}

/// Takes OpenSSL's buffers for records back, unless something is left in them.
pub(super) fn free_buffers<S>(stream: &mut SslStream<S>) {
    // SAFETY: the pointer is valid and borrowed mutably. OpenSSL frees nothing that is in use, and
    // `ensure_buffers` is called before the next use.
    unsafe { SSL_free_buffers(stream.ssl().as_ptr()) };
}

/// Whether the ClientHello that is being looked at has this extension. To be asked in the callback
/// for it; elsewhere there is none.
pub(super) fn client_hello_has(ssl: &mut SslRef, extension: u16) -> bool {
    let mut content = std::ptr::null();
    let mut length = 0;
    // SAFETY: the pointer is valid and borrowed mutably; the other two are written during the call
    // only, and what they say is not used.
    let found = unsafe {
        sys::SSL_client_hello_get0_ext(ssl.as_ptr(), extension.into(), &mut content, &mut length)
    };
    found == 1
}

/// The verdict on a certificate that is in order and not wanted: the peer is told
/// `bad_certificate`.
pub(super) fn certificate_rejected() -> X509VerifyResult {
    // SAFETY: any number may be a verdict, and this is one that OpenSSL knows.
    unsafe { X509VerifyResult::from_raw(X509_V_ERR_CERT_REJECTED) }
}

/// Of OpenSSL's `x509_vfy.h`.
const X509_V_ERR_CERT_REJECTED: c_int = 28;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_a_quarter_to_one_second_and_end_before_openssl_gives_up() {
        let mut last = 0;
        let mut sum = 0;
        let waits: Vec<_> = std::iter::repeat_with(|| {
            last = retransmission(std::ptr::null_mut(), last);
            last
        })
        .take_while(|wait| {
            sum += wait;
            sum < 10_000_000
        })
        .collect();
        assert_eq!(waits[..4], [250_000, 500_000, 1_000_000, 1_000_000]);
        assert!(waits.len() <= 12, "{}", waits.len());
    }
}
