//! Files that are made.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

#[test]
fn secret_files_are_0600_and_the_directory_0700() {
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("set");
    let files = [NewFile::public(set.join("a.pem"), "a"), NewFile::secret(set.join("b.pem"), "b")];
    write_new(Some(&set), &files).unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&set.join("b.pem")), 0o600);
    assert_eq!(mode(&set), 0o700);
    assert_eq!(std::fs::read(set.join("a.pem")).unwrap(), b"a");
}

#[test]
fn one_existing_file_keeps_all_others_from_being_made() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "b.pem", "old");
    symlink("nowhere", dir.path().join("c.pem")).unwrap();
    let files =
        ["a.pem", "b.pem", "c.pem"].map(|name| NewFile::public(dir.path().join(name), "new"));
    let error = write_new(Some(dir.path()), &files).unwrap_err().to_string();
    assert!(error.contains("b.pem") && error.contains("c.pem exist "), "{error}");
    assert!(!dir.path().join("a.pem").exists());
    assert_eq!(std::fs::read(dir.path().join("b.pem")).unwrap(), b"old");
    assert!(!dir.path().join("nowhere").exists());
}

#[test]
fn a_failure_on_the_way_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("set");
    let files =
        [NewFile::secret(set.join("a.pem"), "a"), NewFile::secret(set.join("missing/b.pem"), "b")];
    let error = write_new(Some(&set), &files).unwrap_err();
    assert!(matches!(error, StoreError::Create(..)), "{error}");
    assert!(!set.exists());
}
