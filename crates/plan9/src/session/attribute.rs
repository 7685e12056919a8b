//! What turns a fid into an extended attribute.

use rustix::io::{Errno, Result};

use super::{Fid, Session};
use crate::wire::{Reader, Writer};
use crate::xattr::Attribute;

/// Extended attributes one client may be reading or setting at once.
const MAX_ATTRIBUTES: usize = 64;

impl Session {
    pub(super) fn read_attribute(&mut self, body: &mut Reader<'_>, out: &mut Writer) -> Result<()> {
        let fid = self.fid(body)?;
        let (new, name) = (body.u32()?, body.text()?);
        let (node, user) = (fid.node.clone(), fid.user);
        let attribute = Attribute::read(&node, &name)?;
        self.may_hold_attribute()?;
        out.u64(attribute.size());
        self.insert(new, Fid { node, user, open: None, attribute: Some(attribute) })
    }

    pub(super) fn create_attribute(&mut self, body: &mut Reader<'_>) -> Result<()> {
        self.may_write()?;
        let number = body.u32()?;
        let (name, size, flags) = (body.text()?, body.u64()?, body.u32()?);
        self.may_hold_attribute()?;
        let fid = self.fids.get_mut(&number).ok_or(Errno::BADF)?;
        fid.attribute = Some(Attribute::create(&fid.node, name, size, flags)?);
        Ok(())
    }

    /// Each is memory of ours, of a size that the client chose.
    fn may_hold_attribute(&self) -> Result<()> {
        let held = self.fids.values().filter(|fid| fid.attribute.is_some()).count();
        if held < MAX_ATTRIBUTES { Ok(()) } else { Err(Errno::NFILE) }
    }
}
