"""The catalogue of errors: every code the product raises, what it means and what to do; `docs/errors.md` is made of it.
A code begins with its error class, whose policy (connect.errors) it follows; where each is raised is not known here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """`meaning`: what happened, in one sentence. `advice`: what to do, where the class's own advice is too general."""

    meaning: str
    advice: str | None = None


CORRECT_ADDRESS = "Correct the address in the integration's settings, then run `sis integration test KEY`."
ASK_DISTRICT = "Ask the district to grant the application access to this data, then run `sis integration test KEY`."
NEW_SET = "Have the set delivered again, whole; nothing of this one was used."
RESTORE_KEY = "Put the key that sealed it back into SIS_ENCRYPTION_KEYS or the key file; `sis doctor` names it."
SET_SECRET = "Set it with `sis integration add KEY --replace`."  # noqa: S105 advice, not a secret
SEE_LIST = "`sis integration list` shows those there are."
PLUGIN = "Correct the provider plugin; docs/plugins.md says what it may deliver."
NOTHING = "Nothing needs to be done."

CATALOGUE: dict[str, Entry] = {
    # --- transient: it may pass by itself ----------------------------------------------------------------------------
    "transient.already_running": Entry(
        "Another process is syncing the same integration and school year.", "Wait for it to end, then run it again."
    ),
    "transient.database": Entry(
        "PostgreSQL was stopped, broke off the connection, or could not do its work in time or for want of resources.",
        "Nothing of a transaction that was broken off is kept. Check the server (`sis doctor`), then run it again.",
    ),
    "transient.export": Entry(
        "An export could not be written: the disk is full, or the folder can't be written to or replaced.",
        "Make room, or name a folder that you may write to; what was there before is untouched.",
    ),
    "transient.interrupted": Entry("A run was interrupted before it was done.", "Run it again."),
    "transient.left_alone": Entry(
        "The system failed too often; it is left alone for a while, and nothing was sent.",
        "It is tried again by itself; `sis health` shows when, and what was wrong.",
    ),
    "transient.maintenance": Entry("The system redirected, as for maintenance or to a login page; not followed."),
    "transient.server_error": Entry("The system answered that it failed (a 5xx other than 501, 408 or 425)."),
    "transient.storage": Entry(
        "A file could not be written to the data folder: it is full, read-only or gone.",
        "Make room, or bring the folder back; what was published is untouched, and a reading goes on where it stopped.",
    ),
    "transient.superseded": Entry(
        "Another publication or an erasure came first, so this merge no longer fits.", "It is merged again by itself."
    ),
    "transient.token_busy": Entry(
        "Another process has been fetching a token of the integration for too long.", "It is tried again by itself."
    ),
    "transient.truncated": Entry("The connection broke off before the answer was whole; nothing of it was used."),
    "transient.unreachable": Entry(
        "No whole answer came: the name, the connection, the time limit or the encryption failed."
    ),
    # --- rate_limited ------------------------------------------------------------------------------------------------
    "rate_limited.throttled": Entry("The system said that there were too many requests."),
    "rate_limited.turn_too_far": Entry(
        "A token call would have had to wait too long for its turn at the rate limit.", "It is tried again by itself."
    ),
    # --- auth_expired, auth_revoked ----------------------------------------------------------------------------------
    "auth_expired.refused": Entry("The access token was refused once."),
    "auth_revoked.client": Entry("The token endpoint does not accept the client id and secret."),
    "auth_revoked.declined": Entry(
        "The person, or the district's rules, did not grant access.",
        "Have a person grant it: `sis oauth authorize KEY`.",
    ),
    "auth_revoked.grant": Entry("The grant has ended, was used before, or nobody has granted access yet."),
    "auth_revoked.revoking": Entry(
        "The tokens are being given back, and the server has not confirmed it yet; they are not used any more.",
        "It is tried again by itself; `sis tokens status` shows the last error.",
    ),
    "auth_revoked.refused": Entry("A newly fetched access token was refused as well: access was withdrawn."),
    # --- config: connections -----------------------------------------------------------------------------------------
    "config.access_denied": Entry("The system answered 403: these credentials may not read this.", ASK_DISTRICT),
    "config.account_reason": Entry("A change of the account rules needs who makes it and why."),
    "config.account_rule": Entry(
        "An account rule is unknown, or set to what it does not take.", "`sis accounts rules show DISTRICT` lists them."
    ),
    "config.address": Entry("An address in the settings is not one that may be called.", CORRECT_ADDRESS),
    "config.authorization": Entry(
        "A person's grant can't be asked for, or the request for it was wrong, used up or too old.",
        "Check client_id, scope and authorize_url, then run `sis oauth authorize KEY` again.",
    ),
    "config.certificate": Entry("The server's certificate could not be verified; nothing was sent."),
    "config.header": Entry("A header in the settings can't be sent, or is named like a credential."),
    "config.link_reason": Entry("A decision about who is who needs who decides and why."),
    "config.erasure_key": Entry(
        "Who was erased can't be told any more, so nothing is taken in that could bring them back.",
        "Restore the database from a backup, or `sis erase STUDENT --lift` for each of them.",
    ),
    "config.erasure_reason": Entry("An erasure needs who erases and why."),
    "config.no_student": Entry("No student has that id, or the student was erased.", "`sis students show` shows ids."),
    "config.still_delivered": Entry(
        "A system still delivers the student who is to be erased, and would bring the student back.",
        "Delete the record there and sync, or see docs/erasure.md.",
    ),
    "config.near_match_gone": Entry("The near match was withdrawn: the records no longer give reason for it."),
    "config.no_link": Entry(
        "The record is not one of that student, or staff member.", "`sis links show` lists the records of both."
    ),
    "config.no_near_match": Entry("There is no such near match.", "`sis links review` shows those there are."),
    "config.no_secret": Entry("The integration has no client secret.", SET_SECRET),
    "config.metadata": Entry(
        "The issuer publishes no metadata, or they contradict the settings.",
        "Correct the issuer, or set authorize_url and revoke_url by hand.",
    ),
    "config.no_tokens": Entry("The integration is read without authorization; it has no tokens."),
    "config.not_found": Entry(
        "The system answered 404: there is nothing at this address.",
        "Check the integration's base_url; it may also mean that the district has not switched this API on.",
    ),
    "config.only_link": Entry("The record is the only one of its student: there is nothing to split."),
    "config.private_address": Entry(
        "The host has an address that is not public, and the integration does not allow that; nothing was sent.",
        "Set private_addresses to true if the system really is inside your own network.",
    ),
    "config.redirect": Entry(
        "The system has moved for good (301 or 308); redirects are not followed, because the token would go along.",
        "Correct the integration's base_url or token_url to the address the system now lives at.",
    ),
    "config.refused": Entry("The system refused the request as wrong (another 4xx), or can't do that (501)."),
    "config.revocation": Entry(
        "The server has no place where a token can be given back, or one that must not be called.",
        "Take the access back at the system, or set revoke_url.",
    ),
    "config.scope": Entry(
        "The token endpoint grants none of the scopes asked for.",
        "Have the scopes granted, or set scope to those that are.",
    ),
    "config.token_request": Entry("The token endpoint refuses the kind of request."),
    "config.two_state_ids": Entry(
        "The two have different state ids of one issuer, and nobody said that one person was given both.",
        "Have a wrong one corrected in its SIS; the next sync then joins them, or asks again. Where one person really was "
        "given both, confirm with `--two-state-ids`.",
    ),
    "config.wrong_district": Entry(
        "The credentials reach another district's data than they did the first time, those of a district that another "
        "integration is for, or it can't be told any more whose. Nothing was read or written.",
        "Check the credentials and the address. If the new district is the right one, run `sis integration trust KEY`.",
    ),
    # --- config: secrets and keys ------------------------------------------------------------------------------------
    "config.key_exists": Entry("There is an encryption key already; it was left as it was."),
    "config.key_file": Entry("The key file can be read by others.", "Run `chmod 600` on it."),
    "config.key_in_use": Entry("The key still seals stored secrets, or is the one that seals new ones."),
    "config.key_malformed": Entry("An encryption key is not 32 bytes in URL-safe base64."),
    "config.key_missing": Entry("There is no encryption key.", "Run `sis keys create` once, and back the key up."),
    "config.key_retired": Entry(
        "The key that this process seals with was retired meanwhile.", "Start it anew, with the keys in use now."
    ),
    "config.key_unknown": Entry("A stored secret is sealed with a key that is not among those given.", RESTORE_KEY),
    "config.no_key": Entry("There is no such key."),
    "config.secret_altered": Entry(
        "A stored secret was altered or moved in the database; it was not used.",
        "Store the secret again with `sis integration add KEY --replace`, and find out who writes to oauth_tokens.",
    ),
    # --- config: integrations, years, what a person asked for --------------------------------------------------------
    "config.bad_name": Entry("A key or a district's id has characters that it must not have."),
    "config.custom_field": Entry("The setting custom_fields names a column that there is none of."),
    "config.dagster_home": Entry("The given DAGSTER_HOME has no dagster.yaml."),
    "config.district_code": Entry(
        "The system holds several districts, or none of the code that is set.",
        "Set district_code to the code of the district to read.",
    ),
    "config.environment": Entry("A SIS_* variable of the environment is wrong.", "See docs/configuration.md."),
    "config.hold_decided": Entry("The hold was decided already."),
    "config.guard_reason": Entry("A change of the guard needs who makes it and why."),
    "config.guard_setting": Entry(
        "A threshold of the guard is unknown or out of its bounds.", "`sis guard show` lists them."
    ),
    "config.hold_part": Entry(
        "The hold has nothing of the school or kind that was named.", "`sis holds show HOLD` says what it has."
    ),
    "config.hold_reason": Entry("A decision about a hold needs who decides and why."),
    "config.integration_exists": Entry("There is an integration of this key already."),
    "config.no_hold": Entry("There is no such hold.", "`sis holds list` shows those there are."),
    "config.no_integration": Entry("There is no such integration.", SEE_LIST),
    "config.no_operation": Entry("There is no such operation.", "`sis operations list` shows those there are."),
    "config.no_provider": Entry("The provider is not installed, or can't be loaded.", "`sis providers` lists them."),
    "config.no_school": Entry(
        "The district has no such school, or several of that name.", "Name it by its id, number or name."
    ),
    "config.no_snapshot": Entry("Nothing good was read yet, or there is no such snapshot.", "Run `sis sync` first."),
    "config.not_published": Entry(
        "Nothing is published for the district and school year.",
        "Choose a school year that is, or run `sis sync` first.",
    ),
    "config.not_paused": Entry("The integration is not paused.", "Run `sis integration pause KEY` first."),
    "config.not_undoable": Entry(
        "The operation can't be undone: others stand on it, it is the first, or what was before it is no longer kept.",
        "See docs/undo.md, and `sis operations list`.",
    ),
    "config.other_provider": Entry("The integration is another provider's.", SEE_LIST),
    "config.partition": Entry("The run has no integration and school year.", "Choose a partition of both."),
    "config.paused": Entry("The integration is paused.", "Run `sis integration resume KEY` first."),
    "config.plugin_access": Entry(
        "The PowerSchool plugin may not read what is needed.",
        "Install the plugin of docs/powerschool_plugin, then run `sis integration test KEY`.",
    ),
    "config.conflict": Entry(
        "There is no such conflict, or nothing of it can be chosen.", "`sis conflicts list` shows them."
    ),
    "config.conflict_reason": Entry("A decision about a conflict needs who decides and why."),
    "config.policy": Entry(
        "A survivorship policy is unknown, or set for what has none.", "`sis policy show DISTRICT` lists them."
    ),
    "config.policy_reason": Entry("A change of the policies needs who makes it and why."),
    "config.school_year": Entry(
        "The school year is none, can't be loaded, or is not one that the system shows.",
        "Choose a year the system shows; SIS_FIRST_SCHOOL_YEAR sets the first that can be loaded.",
    ),
    "config.setting": Entry("A setting of the integration is missing or not valid."),
    "config.statewide_reason": Entry("Whether districts are compared needs who says so and why."),
    "config.syncing": Entry("The integration is being synced right now.", "Wait for the sync to end."),
    "config.withdrawal": Entry(
        "A withdrawal is unknown, names nobody, or a day that is still to come.",
        "`sis enrollments withdraw … --dry-run` says whom it would withdraw.",
    ),
    "config.withdrawal_reason": Entry("A withdrawal needs who withdraws and why."),
    # --- config: files -----------------------------------------------------------------------------------------------
    "config.csv_missing": Entry(
        "There is no CSV set where the setting says.",
        "Set path to the folder or .zip that holds the set, readable by the pipeline.",
    ),
    "config.csv_version": Entry("The CSV set says it is of a OneRoster version other than 1.1 and 1.2."),
    "config.export_target": Entry(
        "The folder of an export holds something other than a former export of the district.",
        "Name a folder that is empty or does not exist yet; nothing was written.",
    ),
    "config.undo_reason": Entry("An undo needs who undoes and why."),
    # --- contract: what came is not what the API or the file format allows -------------------------------------------
    "contract.authorization": Entry(
        "The answer to an authorization request is another request's, another server's, or none; it was not used.",
        "Run `sis oauth authorize KEY` and use only the address that it gives.",
    ),
    "contract.bad_path": Entry("An address in an answer has characters that no path has; it was not called."),
    "contract.content_type": Entry("The answer has another content type than JSON."),
    "contract.csv_columns": Entry("A CSV file's columns are not those of OneRoster.", NEW_SET),
    "contract.csv_damaged": Entry("A CSV file or its zip is damaged, cut, encrypted, doubled or no text.", NEW_SET),
    "contract.csv_incomplete": Entry("A file is missing that the manifest promises or a roster needs.", NEW_SET),
    "contract.csv_manifest": Entry("manifest.csv is not as OneRoster has it.", NEW_SET),
    "contract.empty": Entry("The answer has a good status and nothing in it."),
    "contract.html": Entry("A page of HTML came where JSON is due: often a login or maintenance page."),
    "contract.metadata": Entry("An authorization server's metadata are another issuer's, or none; they were not used."),
    "contract.missing_field": Entry("No record has a field that the roster needs: the source renamed or dropped it."),
    "contract.no_count": Entry("The count of a collection is no number."),
    "contract.not_json": Entry("What came is not one whole JSON document."),
    "contract.other_host": Entry("A next link or address leads away from the integration's own host; not followed."),
    "contract.revocation": Entry(
        "The server did not confirm that a token is revoked (only 200 does).", "It is tried again by itself."
    ),
    "contract.shape": Entry("The answer lacks its envelope, or holds something else than records."),
    "contract.token": Entry("The token endpoint answered with something that is no token; nothing was stored."),
    "contract.too_large": Entry("The answer is larger than any page should be; reading was stopped."),
    "contract.wrong_page": Entry("The next page that an answer names is not one of the same collection."),
    # --- data --------------------------------------------------------------------------------------------------------
    "data.audit_changed": Entry(
        "The audit log was changed after it was written.",
        "`sis audit verify` names the first broken row; find out who can write to the database as its owner.",
    ),
    "data.rejected": Entry("The snapshot fails a blocking check; it is kept, and not merged."),
    "data.erased": Entry(
        "Raw pages or frames were deleted because a student was erased.", "Sync again; see docs/erasure.md."
    ),
    "data.expired": Entry(
        "Pages, frames or rejected rows were deleted because they are older than what is kept.",
        "Sync again; see docs/retention.md.",
    ),
    "data.missing_file": Entry("A file of the data folder is missing.", "Restore it, or sync again."),
    "data.tampered": Entry("A file was changed after it was written; it was not used.", "Restore it, or sync again."),
    "data.unstorable": Entry("PostgreSQL can't hold some of the values."),
    # --- internal: ours, or a plugin's -------------------------------------------------------------------------------
    "internal.erasure": Entry(
        "Something of a student came back while the erasure was under way.", "Run `sis erase` again."
    ),
    "internal.frame": Entry("Rows to be written are not those of their table."),
    "internal.lost_records": Entry("A merge lost student records; it is not published."),
    "internal.no_merge": Entry("A district has no merge that could be published.", "See what its merge says."),
    "internal.plugin": Entry("A provider plugin does what its contract does not allow.", PLUGIN),
    "internal.process_died": Entry(
        "A worker process was killed or crashed; what it had finished is kept.",
        "Run it again. If memory ran out, lower --parallel.",
    ),
    "internal.unexpected": Entry("Something failed that nobody foresaw; its place is told, its text may hold values."),
    "internal.state": Entry("A snapshot, file or operation is not in the state that this step needs."),
}
