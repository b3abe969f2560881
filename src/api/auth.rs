//! Authentication: API keys and their scopes.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use strum::VariantArray;
use subtle::ConstantTimeEq;

use crate::config::{ApiKey, Auth, AuthMode, Scope};

/// The prefix of every key, by which scanners recognise a leaked one.
const KEY_PREFIX: &str = "aak_";

/// The sender of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Principal {
    /// The key's name, to which idempotency keys belong.
    pub(super) name: Arc<str>,
    scopes: Arc<[Scope]>,
}

impl Principal {
    pub(super) fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }
}

/// The accepted keys.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    open: bool,
    keys: Arc<[([u8; 32], Principal)]>,
}

impl Keys {
    pub(super) fn new(auth: &Auth) -> Self {
        let keys = auth.keys.iter().filter_map(|key| Some((digest(&key.sha256)?, principal(key))));
        Self { open: auth.mode == AuthMode::None, keys: keys.collect() }
    }

    /// Identifies the sender of an `Authorization` header. `None` when the key is missing or
    /// unknown.
    pub(super) fn identify(&self, authorization: Option<&str>) -> Option<Principal> {
        if self.open {
            return Some(Principal { name: "anonymous".into(), scopes: Scope::VARIANTS.into() });
        }
        let (scheme, key) = authorization?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let hash: [u8; 32] = Sha256::digest(key.trim()).into();
        // Every key is compared in full, so that the time reveals nothing about the keys.
        let mut found = None;
        for (known, principal) in &*self.keys {
            if bool::from(known.ct_eq(&hash)) {
                found = Some(principal.clone());
            }
        }
        found
    }
}

fn principal(key: &ApiKey) -> Principal {
    Principal { name: key.name.as_str().into(), scopes: key.scopes.as_slice().into() }
}

fn digest(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

/// A new key and its hash.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// The key, to be shown once.
    pub key: String,
    /// Its hash, for the configuration.
    pub sha256: String,
}

/// Creates a key of 256 random bits.
#[must_use]
pub fn new_key() -> NewKey {
    let key = format!("{KEY_PREFIX}{}", hex::encode(rand::random::<[u8; 32]>()));
    let sha256 = hex::encode(Sha256::digest(&key));
    NewKey { key, sha256 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(mode: AuthMode, key: &NewKey) -> Keys {
        Keys::new(&Auth {
            mode,
            keys: vec![ApiKey {
                name: "ci".to_owned(),
                sha256: key.sha256.to_uppercase(),
                scopes: vec![Scope::Read],
            }],
            ..Auth::default()
        })
    }

    #[test]
    fn only_a_known_key_opens_the_door_and_only_for_its_scopes() {
        let key = new_key();
        let keys = keys(AuthMode::ApiKey, &key);
        let principal = keys.identify(Some(&format!("Bearer {}", key.key))).unwrap();
        assert_eq!(&*principal.name, "ci");
        assert!(principal.may(Scope::Read));
        assert!(!principal.may(Scope::Write));
        let other = format!("Bearer {}", new_key().key);
        for wrong in [None, Some(other.as_str()), Some(key.key.as_str()), Some("Basic x")] {
            assert_eq!(keys.identify(wrong), None, "{wrong:?} was let in");
        }
    }

    #[test]
    fn without_doors_everyone_may_do_everything() {
        let keys = keys(AuthMode::None, &new_key());
        assert!(keys.identify(None).unwrap().may(Scope::Operate));
    }
}
