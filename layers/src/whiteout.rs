//! What the names in a layer say (OCI image specification, "Layer Filesystem Changeset"): a path, or that one is hidden.

use crate::entry::{EntryError, EntryPath};

/// How the name of a whiteout begins.
const WHITEOUT: &[u8] = b".wh.";
/// How the names of the AUFS driver's own files begin, at the root of a layer.
const AUFS: &[u8] = b".wh..wh.";
/// The file that makes its directory opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Why a name says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NameError {
    /// It is no path.
    Path(EntryError),
    /// It hides nothing that can be named.
    Nothing,
}

impl From<EntryError> for NameError {
    fn from(error: EntryError) -> Self {
        Self::Path(error)
    }
}

/// What a name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Named {
    /// A path of the layer.
    Itself(EntryPath),
    /// This path is hidden in the layers below.
    Whiteout(EntryPath),
    /// Nothing of this directory shows from the layers below.
    Opaque(EntryPath),
}

impl Named {
    /// Tells whiteouts from files. What AUFS kept for itself at the root is a file here; who builds a tree leaves it out.
    pub(crate) fn of(name: &[u8]) -> Result<Self, NameError> {
        let path = EntryPath::new(name)?;
        let Some((parent, name)) = path.split_last() else { return Ok(Self::Itself(path)) };
        if name == OPAQUE {
            return Ok(Self::Opaque(parent));
        }
        if path.as_bytes().starts_with(AUFS) {
            return Ok(Self::Itself(path));
        }
        match name.strip_prefix(WHITEOUT) {
            None => Ok(Self::Itself(path)),
            Some(b"" | b"." | b"..") => Err(NameError::Nothing),
            Some(hidden) => Ok(Self::Whiteout(EntryPath::new(&[parent.as_bytes(), b"/", hidden].concat())?)),
        }
    }
}
