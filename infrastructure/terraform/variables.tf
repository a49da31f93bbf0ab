variable "name" {
  description = "Name of the layer and of the policy."
  type        = string
  default     = "plungepool"
}

variable "layer_zip" {
  description = "Path of the layer's zip, as `make release` writes it. The module publishes it; omit it if layer_arn is given."
  type        = string
  default     = null
}

variable "layer_arn" {
  description = "ARN of a version of the layer that is already published."
  type        = string
  default     = null

  validation {
    condition     = var.layer_arn == null || can(regex("^arn:aws[a-z-]*:lambda:[a-z0-9-]+:[0-9]{12}:layer:[A-Za-z0-9_-]+:[0-9]+$", var.layer_arn))
    error_message = "layer_arn is the ARN of a version: it ends with a colon and a number."
  }
}

variable "host" {
  description = "Host name of the database, or of the RDS Proxy in front of it, as AWS shows it."
  type        = string
}

variable "port" {
  description = "Port of the host."
  type        = number
  default     = 5432
}

variable "database" {
  description = "Name of the database."
  type        = string
  default     = "postgres"
}

variable "user" {
  description = "Database role that the functions sign in as."
  type        = string

  # In the policy they would stand for every role, or for IAM's variables.
  validation {
    condition     = length(var.user) > 0 && !can(regex("[*?$]", var.user))
    error_message = "user is the name of one database role."
  }
}

variable "endpoint" {
  description = "Whether host is the database itself (direct) or a transaction pooler in front of it (proxy)."
  type        = string
  default     = "direct"

  validation {
    condition     = contains(["direct", "proxy"], var.endpoint)
    error_message = "endpoint is direct or proxy."
  }
}

variable "auth" {
  description = "How the functions authenticate: iam, or secret with secret_arn."
  type        = string
  default     = "iam"

  validation {
    condition     = contains(["iam", "secret"], var.auth)
    error_message = "auth is iam or secret."
  }
}

variable "resource_id" {
  description = "With auth iam, the resource ID of what the host name belongs to (db-..., cluster-... or prx-...): an ID, not a name."
  type        = string
  default     = null

  validation {
    condition     = var.resource_id == null || can(regex("^(db|cluster|prx)-[A-Za-z0-9]+$", var.resource_id))
    error_message = "resource_id begins with db-, cluster- or prx-."
  }
}

variable "secret_arn" {
  description = "With auth secret, the ARN of the secret in Secrets Manager."
  type        = string
  default     = null
}

variable "settings" {
  description = "Further settings as environment variables, such as { PLUNGEPOOL_POOL = \"adaptive\" }."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.settings) : startswith(name, "PLUNGEPOOL_")])
    error_message = "Each setting's name begins with PLUNGEPOOL_."
  }
}
