//! Roles: work that one process does for all.

use std::time::Duration;

use async_trait::async_trait;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::super::{
    super::{
        Roles,
        dialect::Dialect,
        rows::micros,
        schema::{instances, relays, roles},
    },
    dialect::Db,
};
use crate::error::Error;

#[async_trait]
impl Roles for Db {
    async fn take_role(&self, role: &str, owner: &str, lease: Duration) -> Result<bool, Error> {
        if Db::SERVES_ONE_PROCESS {
            return Ok(true);
        }
        let mut conn = self.writer().await?;
        let now = Db::now(&mut conn).await?;
        let until = now.saturating_add(micros(lease));
        let free = roles::claimed_until.le(now).or(roles::owner.eq(owner));
        let taken = diesel::update(roles::table.find(role).filter(free))
            .set((roles::owner.eq(owner), roles::claimed_until.eq(until)))
            .execute(&mut conn)
            .await?;
        if taken == 1 {
            return Ok(true);
        }
        let new = (roles::name.eq(role), roles::owner.eq(owner), roles::claimed_until.eq(until));
        let inserted = diesel::insert_into(roles::table)
            .values(new)
            .on_conflict_do_nothing()
            .execute(&mut conn)
            .await?;
        Ok(inserted == 1)
    }

    async fn give_role_back(&self, role: &str, owner: &str) -> Result<(), Error> {
        let mut conn = self.writer().await?;
        diesel::update(roles::table.find(role).filter(roles::owner.eq(owner)))
            .set(roles::claimed_until.eq(0))
            .execute(&mut conn)
            .await?;
        Ok(())
    }

    async fn forget_processes(&self, silent_for: Duration) -> Result<(), Error> {
        let mut conn = self.writer().await?;
        let long_ago = Db::now(&mut conn).await?.saturating_sub(micros(silent_for));
        diesel::delete(relays::table.filter(relays::seen_at.lt(long_ago)))
            .execute(&mut conn)
            .await?;
        diesel::delete(instances::table.filter(instances::seen_at.lt(long_ago)))
            .execute(&mut conn)
            .await?;
        Ok(())
    }
}
