//! Slots and lanes: how accepted events are divided among the processes that deliver them.
//!
//! An event belongs to one of 256 slots, by the hash of its subject, for ever. A lane is a group of
//! slots that is claimed and kept in order as one. Only the number of lanes can change.

use std::{collections::BTreeSet, fmt, str::FromStr};

/// The number of slots.
pub const SLOTS: i32 = 256;

/// The number of lanes into which the slots are divided: a power of two from 16 to 256, so that
/// each lane has the same number of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lanes(i32);

impl Lanes {
    /// The number of lanes of the previous program, which knows no slots: slot modulo 16 is the
    /// lane that it writes into each event.
    pub const SIXTEEN: Self = Self(16);

    /// `None` unless it is a power of two from 16 to 256.
    #[must_use]
    pub const fn new(number: i32) -> Option<Self> {
        if number >= 16 && number <= SLOTS && number & (number - 1) == 0 {
            Some(Self(number))
        } else {
            None
        }
    }

    /// How many there are.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }

    /// The lane of a slot.
    #[must_use]
    pub const fn lane_of(self, slot: i32) -> i32 {
        slot % self.0
    }

    /// The slots of a lane.
    pub fn slots_of(self, lane: i32) -> impl Iterator<Item = i32> {
        (0..SLOTS / self.0).map(move |turn| lane + turn * self.0)
    }

    /// The lanes that the process of this rank holds, when this many processes share all lanes. The
    /// shares differ by one at most, so nobody is idle while there are enough lanes.
    #[must_use]
    pub fn share(self, rank: usize, processes: usize) -> usize {
        let (all, processes) = (usize::try_from(self.0).unwrap_or_default(), processes.max(1));
        all / processes + usize::from(rank < all % processes)
    }
}

/// A set of slots, such as those of new events.
///
/// Its text, which processes send to each other, is 64 hexadecimal digits: slot 0 is the lowest bit
/// of the first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slots([u8; 32]);

impl Slots {
    /// Every slot.
    pub const ALL: Self = Self([u8::MAX; 32]);

    fn bit(slot: i32) -> (usize, u8) {
        let slot = usize::try_from(slot.rem_euclid(SLOTS)).unwrap_or_default();
        (slot / 8, 1 << (slot % 8))
    }

    /// Adds a slot.
    pub fn insert(&mut self, slot: i32) {
        let (byte, bit) = Self::bit(slot);
        self.0[byte] |= bit;
    }

    /// Adds the slots of another set.
    pub fn extend(&mut self, others: &Self) {
        self.0.iter_mut().zip(others.0).for_each(|(one, other)| *one |= other);
    }

    /// True when there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// True when the sets share a slot.
    #[must_use]
    pub fn meets(&self, others: &Self) -> bool {
        self.0.iter().zip(others.0).any(|(one, other)| one & other != 0)
    }

    /// True when every slot is among the others.
    #[must_use]
    pub fn is_within(&self, others: &Self) -> bool {
        self.0.iter().zip(others.0).all(|(one, other)| one & !other == 0)
    }
}

impl FromIterator<i32> for Slots {
    fn from_iter<T: IntoIterator<Item = i32>>(slots: T) -> Self {
        let mut set = Self::default();
        slots.into_iter().for_each(|slot| set.insert(slot));
        set
    }
}

impl fmt::Display for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for Slots {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut set = Self::default();
        hex::decode_to_slice(text, &mut set.0)?;
        Ok(set)
    }
}

/// The rank of `owner` among the processes that share the lanes, and their number. `owner` counts
/// even if it is not among `alive`.
#[must_use]
pub fn rank<'a>(owner: &'a str, alive: impl IntoIterator<Item = &'a str>) -> (usize, usize) {
    let all: BTreeSet<&str> = alive.into_iter().chain([owner]).collect();
    (all.range(..owner).count(), all.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lanes() -> impl Strategy<Value = Lanes> {
        (4..=8_u32).prop_map(|power| Lanes(1 << power))
    }

    proptest! {
        #[test]
        fn each_slot_is_in_one_lane_and_a_change_only_divides_or_joins_lanes(
            few in lanes(), many in lanes(),
        ) {
            let mut seen = Vec::new();
            for lane in 0..many.number() {
                let slots: Vec<i32> = many.slots_of(lane).collect();
                prop_assert!(slots.iter().all(|slot| many.lane_of(*slot) == lane));
                seen.extend(slots);
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..SLOTS).collect::<Vec<_>>());
            if few.number() <= many.number() {
                for slot in 0..SLOTS {
                    prop_assert_eq!(few.lane_of(many.lane_of(slot)), few.lane_of(slot));
                }
            }
        }

        #[test]
        fn shares_are_all_lanes_and_differ_by_one_at_most(
            lanes in lanes(), processes in 1..300_usize,
        ) {
            let shares: Vec<usize> = (0..processes).map(|n| lanes.share(n, processes)).collect();
            let all = usize::try_from(lanes.number()).unwrap();
            prop_assert_eq!(shares.iter().sum::<usize>(), all);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            prop_assert!(most - least <= 1);
            prop_assert!(*least > 0 || processes > all);
        }

        #[test]
        fn each_process_has_a_rank_of_its_own(names in prop::collection::btree_set("[a-c]{1,3}", 1..9)) {
            let names: Vec<String> = names.into_iter().collect();
            let ranks = names.iter().map(|name| rank(name, names.iter().map(String::as_str)).0);
            prop_assert_eq!(ranks.collect::<Vec<_>>(), (0..names.len()).collect::<Vec<_>>());
            let unseen = rank("b", names.iter().map(String::as_str).filter(|name| *name != "b"));
            prop_assert_eq!(unseen, rank("b", names.iter().map(String::as_str).chain(["b"])));
        }

        #[test]
        fn sets_of_slots_survive_their_text(
            one in prop::collection::btree_set(0..SLOTS, 0..20),
            other in prop::collection::btree_set(0..SLOTS, 0..20),
        ) {
            let (a, b): (Slots, Slots) = (one.iter().copied().collect(), other.iter().copied().collect());
            prop_assert_eq!(a.to_string().parse(), Ok(a));
            prop_assert_eq!(a.to_string().len(), 64);
            prop_assert_eq!(a.is_empty(), one.is_empty());
            prop_assert_eq!(a.meets(&b), one.intersection(&other).next().is_some());
            prop_assert_eq!(a.is_within(&b), one.is_subset(&other));
            let mut both = a;
            both.extend(&b);
            prop_assert_eq!(both, one.union(&other).copied().collect::<Slots>());
        }
    }

    #[test]
    fn only_powers_of_two_from_16_to_256_are_numbers_of_lanes() {
        let good: Vec<i32> = (-300..1000).filter(|n| Lanes::new(*n).is_some()).collect();
        assert_eq!(good, [16, 32, 64, 128, 256]);
        assert!("".parse::<Slots>().is_err(), "the previous program sends no set");
        assert!(Slots::ALL.to_string().chars().all(|digit| digit == 'f'));
    }
}
