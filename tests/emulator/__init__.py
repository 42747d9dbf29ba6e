"""Tests of the emulated service; a package, so that its modules may share names with other folders."""
