"""Chats: conversations and instructions, which are recognised in tables and trained on turn by turn."""
