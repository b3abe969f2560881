//! `openapi`.

use std::sync::Arc;

use crate::{api, app::App, config::Config, lifecycle::Exit};

pub(super) fn run(app: &App) -> anyhow::Result<Exit> {
    let state = app.state(Arc::new(Config::default()));
    super::print(&api::specification_yaml(&state))?;
    Ok(Exit::Clean)
}
