//! What the config says of ordinary layers.

/// What becomes of images that are pulled without indexes of their layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexPulled {
    /// Nothing.
    No,
    /// They are indexed for this node.
    Keep,
    /// They are indexed, and the indexes are pushed beside the image, for all nodes.
    Push,
}

impl IndexPulled {
    /// The name that parses back.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Keep => "keep",
            Self::Push => "push",
        }
    }
}

impl std::str::FromStr for IndexPulled {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::No, Self::Keep, Self::Push];
        let found = all.into_iter().find(|known| known.name() == text);
        found.ok_or_else(|| format!("{text:?} is none of no, keep and push"))
    }
}

/// A way in which an ordinary layer can be read on demand: where the index comes from that it is read by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A layer index that this node made.
    Own,
    /// The table of contents of an eStargz or zstd:chunked layer.
    Toc,
    /// A ztoc of SOCI.
    Soci,
    /// A layer index that was pushed beside the image.
    Pushed,
}

impl Way {
    /// All of them, in the order in which they are taken unless told otherwise: the best verified first of those that cost nothing to ask for.
    pub const ALL: [Self; 4] = [Self::Own, Self::Toc, Self::Soci, Self::Pushed];

    /// The name that parses back.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Toc => "toc",
            Self::Soci => "soci",
            Self::Pushed => "pushed",
        }
    }
}

/// What says that ordinary layers are not read on demand.
const NONE: &str = "none";

/// The ways that are taken, the best first; what is left out is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefer(Vec<Way>);

impl Prefer {
    /// The ways.
    #[must_use]
    pub fn ways(&self) -> &[Way] {
        &self.0
    }

    /// What is left when `wish` chooses among these: its order, without what is not among them.
    #[must_use]
    pub fn narrowed(&self, wish: &Self) -> Self {
        Self(wish.0.iter().copied().filter(|way| self.0.contains(way)).collect())
    }
}

impl Default for Prefer {
    fn default() -> Self {
        Self(Way::ALL.to_vec())
    }
}

impl std::fmt::Display for Prefer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.0.iter().map(|way| way.name()).collect();
        f.write_str(if names.is_empty() { NONE.to_owned() } else { names.join(",") }.as_str())
    }
}

impl std::str::FromStr for Prefer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut ways = Vec::with_capacity(Way::ALL.len());
        if text.trim() == NONE {
            return Ok(Self(ways));
        }
        for name in text.split(',').map(str::trim) {
            let way = Way::ALL.into_iter().find(|way| way.name() == name);
            let way =
                way.ok_or_else(|| format!("{name:?} is none of own, toc, soci and pushed; or write none alone"))?;
            if ways.contains(&way) {
                return Err(format!("{name} is named twice"));
            }
            ways.push(way);
        }
        Ok(Self(ways))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_preferred_is_written_as_it_is_read() {
        for text in ["own,toc,soci,pushed", "pushed,own", "toc", "none"] {
            assert_eq!(text.parse::<Prefer>().unwrap().to_string(), text);
        }
        assert_eq!(Prefer::default().to_string(), "own,toc,soci,pushed");
        assert_eq!(" pushed , own ".parse::<Prefer>().unwrap().ways(), [Way::Pushed, Way::Own]);
        for (text, says) in [
            ("", "none alone"),
            ("own,", "none alone"),
            ("none,own", "none alone"),
            ("x", "\"x\""),
            ("toc,toc", "twice"),
        ] {
            let error = text.parse::<Prefer>().unwrap_err();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_wish_orders_what_is_allowed_and_brings_nothing_back() {
        let prefer = |text: &str| text.parse::<Prefer>().unwrap();
        for (allowed, wish, left) in [
            ("own,toc,soci,pushed", "pushed,own", "pushed,own"),
            ("own,toc", "pushed,own", "own"),
            ("own,toc", "pushed", "none"),
            ("own,toc", "none", "none"),
            ("none", "own", "none"),
        ] {
            assert_eq!(prefer(allowed).narrowed(&prefer(wish)), prefer(left), "{wish} of {allowed}");
        }
    }
}
