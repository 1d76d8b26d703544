"""Who may do what: TLS files, credentials, scopes, quotas, the audit log, and the guard that stands before methods."""
