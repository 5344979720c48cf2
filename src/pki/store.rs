//! Writing new files: all of them or none, never over an existing one.

use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What the files of a set are called.
pub mod layout {
    /// The CA's certificate.
    pub const CA: &str = "ca.pem";
    /// The CA's key.
    pub const CA_KEY: &str = "ca-key.pem";
    /// The agent's pair: `server.pem` and `server-key.pem`.
    pub const SERVER: &str = "server";
    /// The client's pair: `client.pem` and `client-key.pem`.
    pub const CLIENT: &str = "client";
}

/// A file to be made.
pub struct NewFile {
    /// Where.
    pub path: PathBuf,
    /// What it holds.
    pub contents: Vec<u8>,
    /// Whether only its owner may read it (mode 0600, else 0644 less the umask).
    pub secret: bool,
}

impl NewFile {
    /// A file that anyone may read.
    pub fn public(path: PathBuf, contents: impl Into<Vec<u8>>) -> Self {
        Self { path, contents: contents.into(), secret: false }
    }

    /// A file that only its owner may read.
    pub fn secret(path: PathBuf, contents: impl Into<Vec<u8>>) -> Self {
        Self { path, contents: contents.into(), secret: true }
    }
}

/// Makes `files`, and `directory` (mode 0700) should it not exist. Nothing is ever overwritten,
/// and when anything fails, whatever was made is removed again.
///
/// # Errors
/// A file that exists already (all such are named, and nothing was touched), or a system error.
pub fn write_new(directory: Option<&Path>, files: &[NewFile]) -> Result<(), StoreError> {
    // A dangling link counts as existing: O_EXCL would refuse it too.
    let existing: Vec<PathBuf> = files
        .iter()
        .filter(|file| file.path.symlink_metadata().is_ok())
        .map(|file| file.path.clone())
        .collect();
    if !existing.is_empty() {
        return Err(StoreError::Exists(existing));
    }
    let mut made = Made::default();
    if let Some(directory) = directory {
        made.directory(directory)?;
    }
    for file in files {
        made.file(file)?;
    }
    made.keep();
    Ok(())
}

/// What was made so far; removes it when dropped.
#[derive(Default)]
struct Made {
    directory: Option<PathBuf>,
    files: Vec<PathBuf>,
}

impl Made {
    fn directory(&mut self, path: &Path) -> Result<(), StoreError> {
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => self.directory = Some(path.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(StoreError::Directory(path.to_owned(), error)),
        }
        Ok(())
    }

    fn file(&mut self, file: &NewFile) -> Result<(), StoreError> {
        let mode = if file.secret { 0o600 } else { 0o644 };
        let mut open =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&file.path).map_err(
                |error| match error.kind() {
                    io::ErrorKind::AlreadyExists => StoreError::Exists(vec![file.path.clone()]),
                    _ => StoreError::Create(file.path.clone(), error),
                },
            )?;
        self.files.push(file.path.clone());
        open.write_all(&file.contents)
            .and_then(|()| open.sync_all())
            .map_err(|error| StoreError::Write(file.path.clone(), error))
    }

    fn keep(mut self) {
        self.files.clear();
        self.directory = None;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for file in &self.files {
            if let Err(error) = fs::remove_file(file) {
                log::warn!("cannot remove the unfinished {}: {error}", file.display());
            }
        }
        if let Some(directory) = &self.directory
            && let Err(error) = fs::remove_dir(directory)
        {
            log::warn!("cannot remove the unfinished {}: {error}", directory.display());
        }
    }
}

/// Why files were not made.
#[derive(Debug)]
pub enum StoreError {
    /// These exist already.
    Exists(Vec<PathBuf>),
    /// The directory could not be made.
    Directory(PathBuf, io::Error),
    /// A file could not be made.
    Create(PathBuf, io::Error),
    /// A file could not be written.
    Write(PathBuf, io::Error),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Exists(paths) => {
                let names: Vec<String> =
                    paths.iter().map(|path| path.display().to_string()).collect();
                write!(
                    f,
                    "{} {} already, and nothing is ever overwritten; choose another place, or move \
                     the old away first",
                    names.join(", "),
                    if names.len() == 1 { "exists" } else { "exist" }
                )
            }
            StoreError::Directory(path, error) => {
                write!(f, "cannot make the directory {}: {error}", path.display())
            }
            StoreError::Create(path, error) => write!(
                f,
                "cannot make {}: {error}; choose a directory that exists and that you may write to",
                path.display()
            ),
            StoreError::Write(path, error) => {
                write!(f, "cannot write {}: {error}; nothing was left behind", path.display())
            }
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StoreError::Exists(_) => None,
            StoreError::Directory(_, error)
            | StoreError::Create(_, error)
            | StoreError::Write(_, error) => Some(error),
        }
    }
}
