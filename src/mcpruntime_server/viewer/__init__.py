"""The web pages on which a person sees what code did, and answers what it asks.

Pages are rendered on the server with templates that escape everything; small scripts of our own
load parts of pages again. `web_access` decides who may see a page, `page_routes` has the table of
all routes, and one module for each kind of page turns what the journal knows into a model of it.

Rule 1: whatever code, upstreams and file names say is hostile. A template never marks text as safe;
the only modules that build markup are `code_highlighting` and `terminal_output`.
Rule 2: a page has what its caller may read over the HTTP API, in the same words for what belongs to
somebody else and for what never was. Writes go through the handlers of the HTTP API.
Rule 3: no page needs anything from another site, an inline script or an inline style.
"""
